import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Key, Scalar
from .._problem.base import AbstractResidualProblem
from ..geometry.base import AbstractDomain


Fields = dict[str, Float[Array, " points"]]


class Reference(eqx.Module):
    """The true solution at some points, and how true it is."""

    points: Float[Array, "points dim"]
    values: Fields
    error: float = eqx.field(static=True)
    axes: dict[str, Float[Array, " _n"]] | None
    free_mean: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        points: ArrayLike,
        values: dict[str, Any],
        error: int | float,
        *,
        axes: dict[str, Any] | None = None,
        free_mean: tuple[str, ...] = (),
    ):
        """**Arguments:**

        - `points`: `(points, dim)`.
        - `values`: by field, one at each point.
        - `error`: relative L2 error of `values` themselves, as measured; never taken to
            be less than the rounding of the default precision, which they are kept in.
        - `axes`: the grid by coordinate, if the points are one, the last coordinate
            fastest.
        - `free_mean`: the fields that the problem fixes only up to a constant, one at
            each time if a coordinate of the grid is called `t`.

        **Raises:** `ValueError` if the shapes do not fit, or the error is not known.
        """
        dtype = jnp.result_type(float)
        self.points = jnp.asarray(points, dtype)
        self.values = {k: jnp.asarray(v, dtype) for k, v in values.items()}
        self.error = max(float(error), float(jnp.finfo(dtype).eps))
        on_axes = (axes or {}).items()
        self.axes = {k: jnp.asarray(x, dtype) for k, x in on_axes} if axes else None
        self.free_mean = free_mean

    def __check_init__(self):
        shapes = {name: field.shape for name, field in self.values.items()}
        wrong = [k for k, shape in shapes.items() if shape != self.points.shape[:1]]
        if not shapes or wrong:
            raise ValueError(
                f"`values` must hold fields of one number a point, got {shapes} for "
                f"{len(self.points)} points. Flatten what lies on a grid."
            )
        sizes = {k: len(x) for k, x in (self.axes or {}).items()}
        if sizes and (len(sizes), math.prod(sizes.values())) != self.points.shape[::-1]:
            raise ValueError(
                f"`axes` of lengths {sizes} do not span `points` of shape "
                f"{self.points.shape}. Leave them out for points that are no grid."
            )
        if not math.isfinite(self.error):
            raise ValueError(
                f"`error` must be finite, got {self.error}. Compare two resolutions."
            )
        unknown = set(self.free_mean) - set(shapes)
        if unknown:
            raise ValueError(
                f"`free_mean` names {sorted(unknown)}, which are not among the fields "
                f"{sorted(shapes)}. Name fields of `values`."
            )

    @property
    def coordinates(self) -> tuple[str, ...]:
        """The names of the coordinates."""
        dim = self.points.shape[1]
        if self.axes is not None:
            return tuple(self.axes)
        return ("x", "y", "z")[:dim] if dim <= 3 else tuple(f"x{i}" for i in range(dim))

    def floor(self, rel_l2: int | float | Scalar) -> bool:
        """Whether an accuracy is below ten times the error of the reference.

        It is then as much a statement about the reference as about the network.
        """
        return bool(float(rel_l2) < 10 * self.error)

    def rel_l2(self, values: dict[str, Array]) -> Scalar:
        """The error of some fields, relative to the solution, in L2.

        That of all fields stacked if there are several.
        """
        wrong, truth = self._norms(values)
        total = lambda norms: jnp.linalg.norm(jnp.stack(list(norms.values())))
        return total(wrong) / total(truth)

    def rel_l2_fields(self, values: dict[str, Array]) -> dict[str, Scalar]:
        """The same, of each field by itself."""
        wrong, truth = self._norms(values)
        return {name: wrong[name] / truth[name] for name in self.values}

    def aligned(self, values: dict[str, Array]) -> Fields:
        """The fields of the reference out of `values`, in its precision.

        Means that the problem leaves free are made those of the reference.
        """
        shapes = {name: field.shape for name, field in values.items()}
        expected = {name: field.shape for name, field in self.values.items()}
        if any(shapes.get(k) != shape for k, shape in expected.items()):
            raise ValueError(
                f"`values` must hold fields of shapes {expected}, got {shapes}. "
                "Predict every field of the reference, one number a point."
            )
        fields = {k: values[k].astype(v.dtype) for k, v in self.values.items()}
        for k in self.free_mean:
            fields[k] = self.values[k] + self._centred(k, fields[k] - self.values[k])
        return fields

    def _norms(
        self, values: dict[str, Array]
    ) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
        """Of the errors and of the solution, free means taken off, by field."""
        fields = self.aligned(values)
        wrong = {k: fields[k] - truth for k, truth in self.values.items()}
        truth = {k: self._centred(k, truth) for k, truth in self.values.items()}
        norms = lambda fields: {k: jnp.linalg.norm(f) for k, f in fields.items()}
        return norms(wrong), norms(truth)

    def _centred(
        self, name: str, field: Float[Array, " points"]
    ) -> Float[Array, " points"]:
        if name not in self.free_mean:
            return field
        sizes = {k: len(x) for k, x in (self.axes or {"": self.points}).items()}
        grid = field.reshape(tuple(sizes.values()))
        space = tuple(i for i, k in enumerate(sizes) if k != "t")
        return (grid - grid.mean(space, keepdims=True)).ravel()


class Benchmark(eqx.Module):
    """A problem with everything that is needed to solve it and to judge the answer.

    **Arguments:**

    - `name`: on the command line.
    - `title`: one line for people.
    - `problem`: the residuals.
    - `domains`, `num_points`: the sets of points that they are evaluated on.
    - `model`: makes a network, from a key and a dtype.
    - `predict`: evaluates the fields of a network at points `(points, dim)`.
    - `reference`: computes the true solution.
    - `num_candidates`: for the sets that an adaptive sampler places.
    - `sampler`, `optimizer`, `steps`, `dtype`: what serves it best, by the names of the
        command line.
    - `coefficients`: the truth of those that an inverse problem is to find, by name.
    """

    name: str = eqx.field(static=True)
    title: str = eqx.field(static=True)
    problem: AbstractResidualProblem
    domains: dict[str, AbstractDomain]
    num_points: dict[str, int] = eqx.field(static=True)
    model: Callable[[Key, Any], Any]
    predict: Callable[[Any, Float[Array, "points dim"]], Fields]
    reference: Callable[[], Reference]
    num_candidates: dict[str, int] = eqx.field(static=True)
    sampler: str = eqx.field(static=True)
    optimizer: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    coefficients: dict[str, float] = eqx.field(static=True, default_factory=dict)

    def rel_l2(self, model: Any, reference: Reference) -> Scalar:
        """The error of a network, relative to the solution, in L2, over all fields."""
        return reference.rel_l2(self.evaluate(model, reference))

    def evaluate(self, model: Any, reference: Reference) -> Fields:
        """The fields of a network at the points of the reference, in its precision."""
        dtype = next(iter(self.domains.values())).lower.dtype
        values = self.predict(model, reference.points.astype(dtype))
        return {k: v.astype(reference.points.dtype) for k, v in values.items()}
