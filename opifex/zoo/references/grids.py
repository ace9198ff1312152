"""From solutions to references: the points, the values there and their error."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..base import Reference


EPSILON = float(np.finfo(np.float64).eps)


def tensor_points(axes: dict[str, np.ndarray]) -> np.ndarray:
    """The points of a tensor grid, `(points, dim)`, the last coordinate fastest."""
    grid = np.meshgrid(*axes.values(), indexing="ij")
    return np.stack([x.ravel() for x in grid], axis=1)


def over_grid(
    axes: dict[str, np.ndarray],
    solution: Callable[..., Any],
    *,
    fields: tuple[str, ...] = ("u",),
    error: float = EPSILON,
    free_mean: tuple[str, ...] = (),
) -> Reference:
    """The reference on a tensor grid of a solution that is known everywhere.

    **Arguments:**

    - `axes`: the grid, by coordinate, in the order in which `solution` takes them.
    - `solution`: maps one vector a coordinate to a vector; to one a field, in the order
        of `fields`, if there are several.
    - `error`: relative L2 error of `solution`; that of a closed form is rounding.
    - `free_mean`: the fields that the problem fixes only up to a constant.
    """
    points = tensor_points(axes)
    values = solution(*points.T)
    values = values if isinstance(values, tuple) else (values,)
    named = dict(zip(fields, values, strict=True))
    return Reference(points, named, error, axes=axes, free_mean=free_mean)


def relative_l2(values: np.ndarray, truth: np.ndarray) -> float:
    """How far two arrays of one shape are apart, relative to the second."""
    return float(np.linalg.norm(values - truth) / np.linalg.norm(truth))
