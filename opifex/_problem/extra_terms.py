"""Terms of a supervised loss beside the misfit to the targets."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._misc import safe_sqrt, squared
from .supervised import RowLoss


class Seen(NamedTuple):
    """What a term is worked out from."""

    predict: Callable[[PyTree[Array]], Array]
    inputs: PyTree[Array]
    prediction: Array
    target: Array


class AbstractRowTerm(eqx.Module):
    """A part of the loss that is a mean over rows."""

    @abc.abstractmethod
    def __call__(self, seen: Seen) -> Float[Array, " rows"]:
        """One number a row."""


def as_fields(x: Array) -> Float[Array, "rows points fields"]:
    """Rows of outputs as fields at points: `(rows, *grid, fields)`; the outputs of a
    matrix are the points of one field."""
    if x.ndim < 3:
        return x.reshape(x.shape[0], -1, 1)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def mass(weights: Array, fields: Float[Array, "points fields"]) -> Float[Array, " 1"]:
    """The integral of the first field."""
    return weights @ fields[:, :1]


def momentum(
    weights: Array, fields: Float[Array, "points fields"]
) -> Float[Array, " fields"]:
    """The integral of each component."""
    return weights @ fields


def energy(weights: Array, fields: Float[Array, "points fields"]) -> Float[Array, " 1"]:
    """Half the integral of the square."""
    return 0.5 * (weights @ jnp.sum(squared(fields), axis=1))[None]


INTEGRALS = {"mass": mass, "momentum": momentum, "energy": energy}


class Drift(AbstractRowTerm):
    """By how much an integral of the prediction differs from that of the reference:
    the target or, for an operator that evolves a state, the input.

    The integrals are sums over the points of a row, by `weights`; equal ones that sum
    to one, unless given.

    **Arguments:**

    - `integral`: maps weights and fields to a vector.
    - `quantity`: or, instead, maps points `(points, dim)` and fields to numbers.
    - `weights`: of the quadrature.
    - `of_input`: whether the reference is the input. Its first fields are the state.
    """

    integral: Callable | None = None
    quantity: Callable | None = None
    weights: tuple[float, ...] | None = eqx.field(static=True, default=None)
    of_input: bool = eqx.field(static=True, default=False)

    def components(self, seen: Seen) -> Float[Array, "rows quantities"]:
        now = as_fields(seen.prediction)
        then = _state_of(seen, now) if self.of_input else as_fields(seen.target)
        return self._of(seen, now) - self._of(seen, then)

    def __call__(self, seen: Seen) -> Float[Array, " rows"]:
        return jnp.max(jnp.abs(self.components(seen)), axis=1)

    def _of(self, seen: Seen, fields: Array) -> Array:
        if self.quantity is not None:
            points = _points(seen.inputs, fields.shape[1])
            one = lambda x, u: jnp.atleast_1d(self.quantity(x, u)).reshape(-1)  # type: ignore[misc]
            return jax.vmap(one)(points, fields)
        assert self.integral is not None
        weights = self._weights(fields)
        return jax.vmap(lambda u: self.integral(weights, u))(fields)  # type: ignore[misc]

    def _weights(self, fields: Array) -> Array:
        points = fields.shape[1]
        if self.weights is None:
            return jnp.full(points, 1 / points, fields.dtype)
        if len(self.weights) != points:
            raise ValueError(
                f"`quadrature_weights` must be {points}, as many as a sample has "
                f"points, got {len(self.weights)}."
            )
        return jnp.asarray(self.weights, fields.dtype)


def _state_of(seen: Seen, now: Array) -> Array:
    """The input as a state of the same fields as the prediction."""
    then = as_fields(seen.inputs)
    if then.shape[1] != now.shape[1] or then.shape[2] < now.shape[2]:
        raise ValueError(
            "`reference` = 'input' needs inputs that are states like the outputs, got "
            f"inputs of shape {seen.inputs.shape} for outputs of shape "
            f"{seen.prediction.shape}. Use 'target'."
        )
    return then[..., : now.shape[2]]


class Asymmetry(AbstractRowTerm):
    """The distance of `f(S x)` from `S f(x)`.

    **Arguments:**

    - `of_points`, `of_fields`: what `S` makes of inputs and of outputs.
    """

    of_points: Callable[[Array], Array] = jnp.negative
    of_fields: Callable[[Array], Array] = lambda fields: fields

    def components(self, seen: Seen) -> Float[Array, "rows 1"]:
        moved = seen.predict(self.of_points(seen.inputs))
        expected = self.of_fields(seen.predict(seen.inputs))
        square = squared(moved - expected).reshape(moved.shape[0], -1)
        return safe_sqrt(jnp.sum(square, axis=1))[:, None]

    def __call__(self, seen: Seen) -> Float[Array, " rows"]:
        return self.components(seen)[:, 0]


class Beyond(AbstractRowTerm):
    """The square of what goes beyond a tolerance, `max(0, |drift| - tolerance)^2`,
    summed over the components of the drift.

    **Arguments:**

    - `drift`: what is measured.
    - `tolerance`: how much of it is free.
    """

    drift: Drift | Asymmetry
    tolerance: float | int = eqx.field(static=True, default=0.0)

    def components(self, seen: Seen) -> Float[Array, "rows quantities"]:
        """What goes beyond it, with its sign."""
        drift = self.drift.components(seen)
        return jnp.sign(drift) * jax.nn.relu(jnp.abs(drift) - self.tolerance)

    def __call__(self, seen: Seen) -> Float[Array, " rows"]:
        return jnp.sum(self.components(seen) ** 2, axis=1)


def coarsen(
    fields: Float[Array, "points fields"], size: int
) -> Float[Array, "coarse fields"]:
    """The means of `size` neighbouring points each; the last of what is left over."""
    points = fields.shape[0]
    num = -(-points // size)
    padded = jnp.pad(fields, ((0, num * size - points), (0, 0)))
    sums = jnp.sum(padded.reshape(num, size, -1), axis=1)
    counts = jnp.full(num, size, fields.dtype).at[-1].set(points - (num - 1) * size)
    return sums / counts[:, None]


class AtScale(AbstractRowTerm):
    """A loss after the restriction of prediction and target to a scale.

    **Arguments:**

    - `loss`: of rows.
    - `restrict`: maps fields `(points, fields)` to those of the scale.
    """

    loss: RowLoss
    restrict: Callable

    def __call__(self, seen: Seen) -> Float[Array, " rows"]:
        restrict = jax.vmap(self.restrict)
        one, other = (as_fields(x) for x in (seen.prediction, seen.target))
        return self.loss(restrict(one), restrict(other))


class Inconsistency(AbstractRowTerm):
    """The mean square of the difference between the prediction at a coarse scale and
    the averages of that at the next finer one.

    **Arguments:**

    - `coarse`, `fine`: the restrictions to the two scales.
    """

    coarse: Callable
    fine: Callable

    def __call__(self, seen: Seen) -> Float[Array, " rows"]:
        def one(fields):
            coarse, fine = self.coarse(fields), self.fine(fields)
            size = -(-fine.shape[0] // coarse.shape[0])
            averaged = coarsen(fine, size)
            if averaged.shape != coarse.shape:
                raise ValueError(
                    "`coupling` needs neighbouring scales whose points go evenly into "
                    f"each other, got {coarse.shape[0]} and {fine.shape[0]}."
                )
            return jnp.mean(squared(averaged - coarse))

        return jax.vmap(one)(as_fields(seen.prediction))


# CODATA 2018: the hartree and the Avogadro constant, by the thermochemical calorie.
KCAL_PER_MOL = 627.5094740631


class EnergyError(AbstractRowTerm):
    """The absolute error of an energy in hartree, in kcal/mol."""

    def __call__(self, seen: Seen) -> Float[Array, " rows"]:
        error = jnp.abs(seen.prediction - seen.target).reshape(seen.target.shape[0], -1)
        return KCAL_PER_MOL * jnp.mean(error, axis=1)


class Within(AbstractRowTerm):
    """One where another is at most `bound`, and zero elsewhere."""

    term: AbstractRowTerm
    bound: float | int = eqx.field(static=True)

    def __call__(self, seen: Seen) -> Float[Array, " rows"]:
        value = self.term(seen)
        return (value <= self.bound).astype(value.dtype)


def _points(inputs: Any, num: int) -> Float[Array, "rows points dim"]:
    """The points of each row: its inputs, if there are as many of them as outputs."""
    rows = inputs.shape[0]
    if inputs.ndim >= 3 and inputs.reshape(rows, -1, inputs.shape[-1]).shape[1] == num:
        return inputs.reshape(rows, num, inputs.shape[-1])
    return inputs.reshape(rows, 1, -1)


def restrictions(
    scales: Sequence[str], operators: dict[str, Callable]
) -> dict[str, Callable]:
    """By name, the restriction to each of some scales, coarse to fine."""
    depth = len(scales) - 1
    return {
        name: operators.get(name, Averages(2 ** (depth - i)))
        for i, name in enumerate(scales)
    }


class Averages(eqx.Module):
    """[`coarsen`][], with its size."""

    size: int = eqx.field(static=True)

    def __call__(self, fields: Array) -> Array:
        return fields if self.size == 1 else coarsen(fields, self.size)
