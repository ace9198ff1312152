from pathlib import Path

import mlflow  # type: ignore[import-not-found]


class Writer:
    """A run of MLflow, by epoch, kept in `directory`."""

    def __init__(self, directory: Path):
        mlflow.set_tracking_uri((directory / "mlruns").absolute().as_uri())
        self._run = mlflow.start_run()

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        mlflow.log_metrics(metrics, step=epoch)

    def close(self) -> None:
        mlflow.end_run()
