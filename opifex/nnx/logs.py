"""Where the documented trainers write the history of a run."""

import csv
import json
import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from ..core.training.physics_configs import LoggingConfig


_log = logging.getLogger("opifex")

Row = dict[str, float]


class Logs:
    """Writes a row every few epochs, and warns, once, of what crosses a threshold.

    The files are opened at the first row; a CSV file has the columns of all rows.

    **Arguments:**

    - `config`: says where, what and how often.
    """

    def __init__(self, config: LoggingConfig):
        self._config = config
        self._warned: set[str] = set()
        directory = Path(config.directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._writers = [_WRITERS[name](directory) for name in config.backends]
        _log.setLevel(config.level_number)

    def __call__(self, state: Any, epoch: int, metrics: Row) -> None:
        del state
        for name, threshold in self._config.alert_thresholds.items():
            value = metrics.get(name)
            # A NaN is above every threshold.
            if value is None or value <= threshold or name in self._warned:
                continue
            self._warned.add(name)
            _log.warning(
                "%s = %g is above its threshold %g at epoch %d.",
                name,
                value,
                threshold,
                epoch,
            )
        if epoch % self._config.frequency:
            return
        _log.info("epoch %d: train_loss %.6g", epoch, metrics["train_loss"])
        for writer in self._writers:
            writer.write(epoch, metrics)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class _Jsonl:
    def __init__(self, directory: Path):
        self._file: TextIO = (directory / "history.jsonl").open("w")

    def write(self, epoch: int, metrics: Row) -> None:
        self._file.write(json.dumps({"epoch": epoch} | metrics) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Csv:
    """Rewritten from the start where a later row has new columns."""

    def __init__(self, directory: Path):
        self._path = directory / "history.csv"
        self._rows: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._path.write_text("")

    def write(self, epoch: int, metrics: Row) -> None:
        row = {"epoch": epoch} | metrics
        self._rows.append(row)
        new = [name for name in row if name not in self._names]
        self._names += new
        with self._path.open("w" if new else "a", newline="") as file:
            writer = csv.DictWriter(file, self._names, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(self._rows if new else [row])

    def close(self) -> None:
        pass


def _in_file(module: str) -> Callable[[Path], Any]:
    """A writer in a file of its own, because it needs an optional package."""
    return lambda directory: import_module(f"opifex.nnx.{module}").Writer(directory)


_WRITERS: dict[str, Callable[[Path], Any]] = {
    "jsonl": _Jsonl,
    "csv": _Csv,
    "tensorboard": _in_file("to_tensorboard"),
    "wandb": _in_file("to_wandb"),
    "mlflow": _in_file("to_mlflow"),
}
