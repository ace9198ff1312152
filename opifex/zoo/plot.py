"""Figures of a run, from the files in its folder."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .._reading import read_arrays
from .panels import draw_field


def plot_run(folder: Path) -> list[Path]:
    """Draws `solution.png` and `history.png` in the folder of a run, over its files,
    and `dissociation.png` if it is one of a density functional."""
    written = []
    if (folder / "dissociation.npz").exists():
        with np.load(folder / "dissociation.npz", allow_pickle=False) as data:
            written.append(_dissociation(dict(data), folder / "dissociation.png"))
    if (folder / "solution.npz").exists():
        data = read_arrays(folder / "solution.npz")
        written.append(_solution(data, folder / "solution.png"))
    if (folder / "history.csv").exists():
        written.append(_history(folder / "history.csv", folder / "history.png"))
    if not written:
        raise FileNotFoundError(f"No solution.npz or history.csv in {str(folder)!r}.")
    return written


def _solution(data: dict[str, np.ndarray], path: Path) -> Path:
    """One row a field."""
    fields = [str(name) for name in data["fields"]]
    figure = Figure(figsize=(13, 3.6 * len(fields)), layout="constrained")
    rows = figure.subplots(len(fields), 3, squeeze=False)
    for row, name in zip(rows, fields, strict=True):
        draw_field(list(row), name, data)
    figure.savefig(path, dpi=130)
    return path


def _dissociation(data: dict[str, np.ndarray], path: Path) -> Path:
    """Energies over the separation, and how wrong they are."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x, exact = data["separation"], data["exact"]
    left.plot(x, exact, "k-", label="exact")
    for name, style in (("neural", "o"), ("lda", "--")):
        left.plot(x, data[name], style, markersize=3, label=name)
        right.semilogy(x, 1e3 * np.abs(data[name] - exact), style, markersize=3)
    for place in data["trained"]:
        left.axvline(place, color="grey", linewidth=0.5)
    right.axhline(1.6, color="grey", linewidth=0.5)  # chemical accuracy
    left.legend()
    left.set_title("energy in hartree; trained at the lines")
    right.set_title("|error| in mHa; chemical accuracy at the line")
    for axis in (left, right):
        axis.set_xlabel("separation in bohr")
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
