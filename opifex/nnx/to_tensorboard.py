from pathlib import Path

from tensorboardX import SummaryWriter


class Writer:
    """Event files for TensorBoard, by epoch."""

    def __init__(self, directory: Path):
        self._writer = SummaryWriter(str(directory))

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
