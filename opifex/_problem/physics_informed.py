from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import Key
from ..derivatives import Residual
from .at_points import AtPoints
from .base import AbstractResidualProblem
from .supervised import Pairs


PointModel = Callable[[Float[Array, " dim"]], Array]


class PhysicsInformed(AbstractResidualProblem):
    """An equation, and whatever is known besides, for points that come with the batch.

    The batch is a dictionary: `"interior"` holds the points of the equation, `(points,
    dim)`; `"data"`, `"boundary"` and `"initial"`, if they are there, are [`Pairs`][] of
    points and values. Each is a term of the loss. ([`PDE`][] is for points that are
    sampled from a domain.)

    **Arguments:**

    - `equation`: from [`residual`][], or a function `(model_fn, *coordinates)` of one
        point that gives what the equation leaves over; it gets numbers, and `model_fn`
        maps an array `(dim,)` or `(1, dim)` to a number (an array `(fields,)`, if
        the model has several outputs). `None` for none.
    - `constraints`: by name, functions of the values `(points, fields)` of the model at
        the interior points and of these points, that vanish where the constraint holds.
    - `batched`: whether the model maps `(n, dim)` to `(n, fields)`, and not one point.
    - `weights`: by name, of the mean squares in the loss; of all terms that begin so.
    - `conditions`: on the boundary of a domain, with their points.
    """

    equation: Residual | Callable | None = None
    constraints: dict[str, Callable] = eqx.field(default_factory=dict)
    batched: bool = eqx.field(static=True, default=False)
    weights: dict[str, float | int] = eqx.field(static=True, default_factory=dict)
    conditions: AtPoints | None = None

    def residuals(self, model, batch: dict[str, Any]):
        return self.stochastic_residuals(model, batch, jax.random.key(0))

    def stochastic_residuals(self, model, batch: dict[str, Any], key):
        at = _of_one_point(model) if self.batched else model
        out: dict[str, Array] = {}
        points = batch["interior"]
        if self.equation is not None:
            out |= _equation(self.equation, at, points, key)
        for name, constraint in self.constraints.items():
            values = _matrix(jax.vmap(at)(points))
            out[f"interior/{name}"] = jnp.atleast_1d(constraint(values, points))
        for name, pairs in batch.items():
            if name != "interior":
                out[name] = _misfit(at, pairs)
        if self.conditions is not None:
            out |= self.conditions.residuals(at)
        scale = lambda name: self.weights.get(name.split("/")[0], 1.0) ** 0.5
        return {name: scale(name) * r for name, r in out.items()}


def _equation(
    equation: Residual | Callable, at: PointModel, points: Array, key: Key
) -> dict[str, Array]:
    if isinstance(equation, Residual):
        left = equation(at, points, key=key)
    else:
        model_fn = lambda p: _number(at(jnp.reshape(p, (-1,))))
        left = jax.vmap(lambda p: equation(model_fn, *p))(points)
    if not isinstance(left, tuple):
        return {"interior": jnp.reshape(left, points.shape[:1])}
    shape = points.shape[:1]
    return {f"interior/{i}": jnp.reshape(r, shape) for i, r in enumerate(left)}


def _misfit(at: PointModel, pairs: Pairs) -> Array:
    prediction, targets = _matrix(jax.vmap(at)(pairs.inputs)), _matrix(pairs.targets)
    if prediction.shape != targets.shape:
        raise ValueError(
            "`targets` must have the shape of the predictions of `model`, got "
            f"{targets.shape} and {prediction.shape}."
        )
    return (prediction - targets).reshape(-1)


def _of_one_point(model: Callable) -> PointModel:
    return lambda point: model(point[None])[0]


def _number(x: Any) -> Any:
    return jnp.reshape(x, ()) if x.size == 1 else x


def _matrix(x: Array) -> Array:
    return x[:, None] if x.ndim == 1 else x
