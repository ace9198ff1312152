from pathlib import Path

import wandb  # type: ignore[import-not-found]


class Writer:
    """A run of Weights & Biases, by epoch; its local files go to `directory`."""

    def __init__(self, directory: Path):
        self._run = wandb.init(dir=str(directory))

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=epoch)

    def close(self) -> None:
        self._run.finish()
