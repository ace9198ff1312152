import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import equinox as eqx
import numpy as np

from .._results import RESULT_NAMES
from .._state import StepInfo
from .base import AbstractCallback


class History(AbstractCallback[TextIO]):
    """A row a step: the loss, its terms, their weights, the metrics, the gradient norm.

    A resumed run goes on where its state is: later rows of a file that is found are
    removed first, so that none stands twice.

    **Arguments:**

    - `path`: of the file; `.csv` or `.jsonl` says which format. Its folder is made.
    """

    path: Path = eqx.field(static=True, converter=Path)

    def __check_init__(self):
        if self.path.suffix not in (".csv", ".jsonl"):
            raise ValueError(
                f"`path` must end in .csv or .jsonl, got {str(self.path)!r}."
            )

    def init(self, state, num_chunks):
        del num_chunks
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _truncate(self.path, int(np.max(state.step)))
        return self.path.open("a", newline="")

    def on_chunk(self, memory, state, infos):
        rows = list(history_rows(infos, int(np.max(state.step))))
        if self.path.suffix == ".jsonl":
            memory.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(memory, rows[0], lineterminator="\n")
            if memory.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
        memory.flush()
        return memory, False

    def close(self, memory, state):
        del state
        memory.close()


def history_rows(infos: StepInfo, end: int) -> Iterator[dict[str, Any]]:
    """The steps of a chunk that ended after `end` steps, as flat dictionaries.

    For an ensemble, a row a member and step.
    """
    columns = {"loss": infos.loss}
    columns |= {f"term/{name}": v for name, v in infos.terms.items()}
    columns |= {f"weight/{name}": v for name, v in infos.weights.items()}
    columns |= {f"metric/{name}": v for name, v in infos.metrics.items()}
    columns |= {"grad_norm": infos.grad_norm, "step_scale": infos.step_scale}
    columns = {name: np.atleast_2d(v).tolist() for name, v in columns.items()}
    results = np.atleast_2d(infos.result._value)
    members, steps = results.shape
    for i in range(steps):
        for member in range(members):
            row: dict[str, Any] = {"step": end - steps + i}
            if infos.loss.ndim == 2:
                row["member"] = member
            row |= {name: values[member][i] for name, values in columns.items()}
            yield row | {"result": RESULT_NAMES[results[member, i]]}


def _truncate(path: Path, end: int) -> None:
    """Removes the rows from step `end` on; all of them, and the file, if `end` is 0."""
    if not path.exists():
        return
    if end == 0:
        path.unlink()
        return
    lines = path.read_text().splitlines(keepends=True)
    if path.suffix == ".csv":
        head, rows = lines[:1], lines[1:]
        step = lambda line: int(line.split(",", 1)[0])
    else:
        head, rows = [], lines
        step = lambda line: json.loads(line)["step"]
    kept = [row for row in rows if row.endswith("\n") and step(row) < end]
    path.write_text("".join(head + kept))
