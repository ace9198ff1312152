"""Figures of a run, from the files in its folder."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def plot_run(folder: Path) -> list[Path]:
    """Draws `solution.png` and `history.png` in the folder of a run, over its files."""
    written = []
    if (folder / "solution.npz").exists():
        with np.load(folder / "solution.npz", allow_pickle=False) as data:
            written.append(_solution(dict(data), folder / "solution.png"))
    if (folder / "history.csv").exists():
        written.append(_history(folder / "history.csv", folder / "history.png"))
    if not written:
        raise FileNotFoundError(f"No solution.npz or history.csv in {str(folder)!r}.")
    return written


def _solution(data: dict[str, np.ndarray], path: Path) -> Path:
    """Prediction, reference and error over the first two coordinates."""
    prediction, reference = data["prediction"], data["reference"]
    error = np.abs(prediction - reference)
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    limit = np.abs(reference).max()
    titles = ("prediction, and the next points", "reference", "|error|")
    for axis, values, title in zip(
        axes, (prediction, reference, error), titles, strict=True
    ):
        signed = values is not error
        image = axis.pcolormesh(
            data["axis1"],
            data["axis0"],
            values,
            cmap="RdBu_r" if signed else "magma",
            vmin=-limit if signed else 0,
            vmax=limit if signed else None,
            rasterized=True,
        )
        axis.set_title(title)
        axis.set_xlabel(str(data["names"][1]))
        figure.colorbar(image, ax=axis)
    axes[0].set_ylabel(str(data["names"][0]))
    if "points" in data:
        points = data["points"]
        axes[0].plot(points[:, 1], points[:, 0], "k.", markersize=1, alpha=0.5)
    figure.savefig(path, dpi=130)
    return path


def _history(source: Path, path: Path) -> Path:
    """The loss and its terms, and the gradient norm, over the steps."""
    columns = _read_columns(source)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in columns.items():
        if name == "loss" or name.startswith("term/"):
            left.semilogy(columns["step"], values, ".", markersize=1.5, label=name)
    right.semilogy(columns["step"], columns["grad_norm"], ".", markersize=1.5)
    left.legend(markerscale=6)
    left.set_title("loss")
    right.set_title("gradient norm")
    for axis in (left, right):
        axis.set_xlabel("step")
    figure.savefig(path, dpi=130)
    return path


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    columns.pop("result")
    return {name: np.array(values, float) for name, values in columns.items()}
