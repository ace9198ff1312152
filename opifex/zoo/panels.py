"""Three panels that show a field: how it was predicted, how it is, and the error."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def draw_field(axes: Sequence[Any], name: str, data: dict[str, np.ndarray]) -> None:
    """Draws a field on three axes of matplotlib.

    Over one coordinate as curves; over two in colour; over more, on a grid, as the last
    slice; and at points without a grid, as the prediction over the truth.

    **Arguments:**

    - `axes`: where to draw.
    - `name`: of the field.
    - `data`: what `solution.npz` holds.
    """
    on_grid, dim = "axis0" in data, data["points"].shape[1]
    fields = [data[f"prediction_{name}"], data[f"reference_{name}"]]
    fields.append(np.abs(fields[0] - fields[1]))
    for axis, kind in zip(axes, ("prediction", "reference", "|error|"), strict=True):
        axis.set_title(f"{name}: {kind}")
    if dim == 1:
        _curves(axes, fields, data)
    elif dim == 2 or on_grid:
        _colours(axes, fields, data)
    else:
        _against_truth(axes, fields)


def _curves(axes, fields, data) -> None:
    order = np.argsort(data["points"][:, 0])
    for axis, values in zip(axes, fields, strict=True):
        axis.plot(data["points"][order, 0], values[order])
        axis.set_xlabel(str(data["coordinates"][0]))


def _colours(axes, fields, data) -> None:
    names = [str(name) for name in data["coordinates"]]
    # Time runs to the right; in the plane, x does.
    across, up = (1, 0) if names[1] == "t" else (0, 1)
    limit = np.abs(fields[1]).max()
    for axis, values, signed in zip(axes, fields, (True, True, False), strict=True):
        style = {
            "cmap": "RdBu_r" if signed else "magma",
            "vmin": -limit if signed else 0,
            "vmax": limit if signed else None,
            "rasterized": True,
        }
        image = _image(axis, values, data, across, style)
        axis.set_xlabel(names[across])
        axis.set_ylabel(names[up])
        axis.figure.colorbar(image, ax=axis)
    if "sampled" in data and len(names) == 2:
        points = data["sampled"]
        axes[0].set_title(axes[0].get_title() + ", and the next points")
        style = {"markersize": 1, "alpha": 0.5}
        axes[0].plot(points[:, across], points[:, 1 - across], "k.", **style)


def _image(axis, values, data, across: int, style: dict[str, Any]):
    if "axis0" not in data:
        x, y = data["points"][:, across], data["points"][:, 1 - across]
        return axis.scatter(x, y, c=values, s=4, **style)
    grid = [data[f"axis{i}"] for i in range(len(data["coordinates"]))]
    values = values.reshape([len(x) for x in grid])
    for i in range(len(grid) - 1, 1, -1):
        last = f"{data['coordinates'][i]} = {grid[i][-1]:g}"
        axis.set_title(f"{axis.get_title()}, {last}")
        values = values[..., -1]
    values = values if across == 1 else values.T
    return axis.pcolormesh(grid[across], grid[1 - across], values, **style)


def _against_truth(axes, fields) -> None:
    prediction, truth, error = fields
    ends = [truth.min(), truth.max()]
    axes[0].plot(truth, prediction, ".", markersize=1)
    axes[0].plot(ends, ends, "k-", linewidth=0.5)
    axes[1].hist(truth, bins=50)
    axes[2].plot(truth, error, ".", markersize=1)
    axes[0].set_ylabel("prediction")
    axes[2].set_ylabel("|error|")
    for axis in axes:
        axis.set_xlabel("reference")
