from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Int, PyTree

from ._custom_types import Count, Key, Scalar, Terms
from ._misc import squared, unknown_name
from ._precision import Precision
from ._problem.base import (
    AbstractProblem,
    AbstractResidualProblem,
    Aux,
    mean_squares,
    plain,
    point_weights,
    weighted_sets,
)
from ._weighting.base import AbstractWeighting, Needs, Pointwise


class Evaluation(NamedTuple):
    """What an evaluation of the loss brings to light beside its value."""

    terms: Terms
    weights: Terms
    metrics: Terms
    rest: PyTree  # the arrays that are not trained, buffers updated
    residuals: dict[str, Array] | None = None  # for weightings of single points
    pointwise: Pointwise | None = None  # likewise


class _Part(NamedTuple):
    """A microbatch, or the whole batch."""

    batch: PyTree
    key: Key
    shares: dict[str, Array]
    pointwise: Pointwise | None


class Objective(eqx.Module):
    """The loss on one batch, as a function of the trained parameters alone."""

    problem: AbstractProblem
    weighting: AbstractWeighting
    weighting_state: Any
    rest: PyTree  # all of the model that is not trained
    batch: PyTree
    key: Key
    precision: Precision
    microbatches: int
    remat: bool
    pointwise: Pointwise | None = None  # weights of points that were settled before
    # This term alone, without its weight as a term.
    only: str | None = eqx.field(static=True, default=None)

    def __call__(self, params: PyTree) -> Scalar:
        if self.microbatches == 1:
            return self._evaluate(params, None, self._whole())[0]
        if self._sees_points and self.pointwise is None:
            return replace(self, pointwise=self._settle(params)[1])(params)
        shares = self._shares(params)
        value = lambda i: self._evaluate(params, None, self._microbatch(i, shares))[0]
        return jnp.sum(jax.lax.map(value, self._indices()))

    def value_and_grad(self, params: PyTree) -> tuple[Scalar, Evaluation, PyTree]:
        """The value, what came with it, and the direction of steepest ascent."""
        if self.microbatches == 1:
            return self._gradient(params, None, self._whole())
        if self._sees_points and self.pointwise is None:
            # The weights of points may depend on all of them.
            residuals, pointwise = self._settle(params)
            objective = replace(self, pointwise=pointwise)
            value, seen, grads = objective.value_and_grad(params)
            seen = seen._replace(residuals=residuals, pointwise=pointwise)
            return value, seen, grads
        shares = self._shares(params)

        def add(carry, i):
            rest, grads = carry
            part = self._microbatch(i, shares)
            value, seen, more = self._gradient(params, rest, part)
            mine = part.shares
            terms, metrics = _times(mine, seen.terms), _times(mine, seen.metrics)
            grads = jtu.tree_map(jnp.add, grads, more)
            return (seen.rest, grads), (value, terms, metrics, seen.weights)

        arrays = eqx.filter(self.rest, eqx.is_array)
        start = (arrays, jtu.tree_map(jnp.zeros_like, params))
        (rest, grads), parts = jax.lax.scan(add, start, self._indices())
        value, terms, metrics, _ = jtu.tree_map(lambda x: jnp.sum(x, axis=0), parts)
        weights = jtu.tree_map(lambda x: x[0], parts[3])
        return value, Evaluation(terms, weights, metrics, rest), grads

    def settled(self, seen: Evaluation) -> "Objective":
        """The same with the weights of points as they were seen."""
        return replace(self, pointwise=seen.pointwise)

    def term_gradients(self, params: PyTree, terms: Terms) -> dict[str, PyTree]:
        """The gradient of each term, weights of points included."""
        # One backward pass a term: that of all at once costs several times more.
        alone = {name: replace(self, only=name) for name in terms}
        return {name: one.value_and_grad(params)[2] for name, one in alone.items()}

    def point_gradients(self, params: PyTree, max_points: int) -> Terms:
        """By term, the sum over its points of the squared norm of the gradient of the
        residual, from at most `max_points` of them."""
        shapes = eqx.filter_eval_shape(self._residuals_of, params, self.batch, self.key)
        return {
            name: _kernel_trace(self, params, name, r.shape[0], max_points)
            for name, r in shapes.items()
        }

    @property
    def _sees_points(self) -> bool:
        return Needs.RESIDUALS in self.weighting.needs

    def _gradient(self, params, arrays, part):
        scale = self.precision.loss_scale

        def scaled(params):
            value, seen = self._evaluate(params, arrays, part)
            return value * scale, (value, seen)

        if self.remat:
            scaled = jax.checkpoint(scaled)
        grads, (value, seen) = jax.grad(scaled, has_aux=True)(params)
        # JAX gives the gradient of a real function of a complex parameter as the
        # conjugate of the direction of steepest ascent.
        return value, seen, jtu.tree_map(lambda g: jnp.conj(g) / scale, grads)

    def _evaluate(self, params, arrays, part) -> tuple[Scalar, Evaluation]:
        rest = eqx.combine(arrays, self.rest)
        cast = self.precision.to_compute
        model = cast(eqx.combine(params, rest))
        residuals, pointwise = None, None
        if self._sees_points:
            residuals = checked_residuals(
                self.problem, model, cast(part.batch), part.key
            )
            weights = point_weights(part.batch, residuals)
            terms, aux = mean_squares(residuals, weights)
            residuals = self.precision.to_output(residuals)
            pointwise = self._pointwise(part, residuals)
            counted = pointwise.means(residuals)
        else:
            terms, aux = checked_terms(self.problem, model, cast(part.batch), part.key)
            counted = None
        terms, metrics = self.precision.to_output((terms, aux.metrics))
        weights = self.weighting.weights(self.weighting_state, terms)
        weights = jax.lax.stop_gradient(weights)
        counted = _times(part.shares, terms if counted is None else counted)
        if self.only is None:
            parts = [weights[n] * v for n, v in counted.items()]
        else:
            parts = [counted[self.only]]
        rest = rest if aux.model is None else _updated(rest, aux.model)
        seen = Evaluation(
            terms,
            weights,
            metrics,
            eqx.filter(rest, eqx.is_array),
            residuals,
            pointwise,
        )
        return sum(parts[1:], parts[0]), seen

    def _pointwise(self, part: _Part, residuals: dict[str, Array]) -> Pointwise:
        if part.pointwise is not None:
            return part.pointwise
        residuals, batch = jax.lax.stop_gradient(residuals), plain(part.batch)
        pointwise = self.weighting.at_points(self.weighting_state, residuals, batch)
        return _reweighted(pointwise, point_weights(part.batch, residuals))

    def _settle(self, params: PyTree) -> tuple[dict[str, Array], Pointwise]:
        """The residuals at all points of all microbatches, and what weighs them."""

        def one(i):
            part = self._microbatch(i, {})
            return self._residuals_of(params, part.batch, part.key)

        # Microbatches are consecutive rows.
        join = lambda r: jax.lax.stop_gradient(r.reshape(-1))
        residuals = jtu.tree_map(join, jax.lax.map(one, self._indices()))
        return residuals, self._pointwise(self._whole(), residuals)

    def _residuals_of(self, params, batch, key) -> dict[str, Array]:
        cast = self.precision.to_compute
        model = cast(eqx.combine(params, self.rest))
        residuals = checked_residuals(self.problem, model, cast(batch), key)
        return self.precision.to_output(residuals)

    def _whole(self) -> _Part:
        return _Part(self.batch, self.key, {}, self.pointwise)

    def _indices(self) -> Int[Array, " microbatches"]:
        return jnp.arange(self.microbatches, dtype=jnp.int32)

    def _microbatch(self, i: Count, shares: dict[str, Array]) -> _Part:
        mine = {name: share[i] for name, share in shares.items()}
        pointwise = self.pointwise
        if pointwise is not None:
            pointwise = pointwise.block(i, self.microbatches)
        return _Part(self._rows(i), jr.fold_in(self.key, i), mine, pointwise)

    def _rows(self, i: Count) -> PyTree:
        k = self.microbatches

        def rows(path, x):
            if x.ndim == 0:
                return x
            if x.shape[0] % k:
                raise ValueError(
                    f"`accumulate` must divide the rows of the batch, got {k} for "
                    f"`batch{jtu.keystr(path)}` of shape {x.shape}."
                )
            return x.reshape(k, x.shape[0] // k, *x.shape[1:])[i]

        return jtu.tree_map_with_path(rows, self.batch)

    def _shares(self, params: PyTree) -> dict[str, Array]:
        """By name, how much of the whole mean each microbatch makes up."""

        def counts(i):
            model = eqx.combine(params, self.rest)
            key = jr.fold_in(self.key, i)
            terms, aux = checked_terms(self.problem, model, self._rows(i), key)
            ones = {n: jnp.ones_like(v) for n, v in (terms | aux.metrics).items()}
            return ones | {n: c.astype(ones[n].dtype) for n, c in aux.counts.items()}

        counted = jax.lax.map(counts, self._indices())
        return {n: c / jnp.maximum(jnp.sum(c), 1) for n, c in counted.items()}


def _times(shares: Terms, values: Terms) -> Terms:
    if not shares:
        return values
    return {name: shares[name].astype(v.dtype) * v for name, v in values.items()}


def _reweighted(pointwise: Pointwise, weights: dict[str, Array]) -> Pointwise:
    """The same, with what each point counts in the means multiplied in."""
    own, multipliers = dict(pointwise.weights), dict(pointwise.multipliers)
    for name, w in weights.items():
        own[name] = own[name] * w.astype(own[name].dtype) if name in own else w
        if name in multipliers:
            multipliers[name] = multipliers[name] * w.astype(multipliers[name].dtype)
    return Pointwise(own, multipliers)


def _updated(rest: PyTree, model: PyTree) -> PyTree:
    """`rest` with the arrays of `model`, in the dtypes they had."""

    def take(old, new):
        return new.astype(old.dtype) if eqx.is_array(old) else old

    return jtu.tree_map(take, rest, model, is_leaf=lambda x: x is None)


def checked_terms(
    problem: AbstractProblem, model: Any, batch: Any, key: Key
) -> tuple[Terms, Aux]:
    """`problem.terms`, unless they are no terms of a loss."""
    name = type(problem).__name__
    of_residuals = isinstance(problem, AbstractResidualProblem)
    by_mean = of_residuals and type(problem).terms is AbstractResidualProblem.terms
    if weighted_sets(batch) and not by_mean:
        raise TypeError(
            f"The points of {sorted(weighted_sets(batch))} carry weights, but `{name}` "
            "has a method `terms` of its own, which would pass them over. Return these "
            "terms from `residuals`, or use a sampler without weights, such as `RAD`."
        )
    match problem.terms(model, batch, key):
        case dict() as terms, Aux() as aux if terms:
            pass
        case other:
            raise TypeError(
                f"`{name}.terms` must return a dictionary of scalars, not empty, and "
                f"an `Aux`, got {eqx.tree_pformat(other)}."
            )
    named = terms | aux.metrics
    for term, value in named.items():
        real = eqx.is_array(value) and jnp.issubdtype(value.dtype, jnp.floating)
        if not real or value.shape != ():
            got = (
                f"{value.dtype} of shape {value.shape}"
                if eqx.is_array(value)
                else value
            )
            raise ValueError(
                f"`{name}.terms` must give real scalars, got {got} for {term!r}. Take "
                "the mean over points, of a real quantity."
            )
    for term in aux.counts:
        if term not in named:
            raise ValueError(unknown_name("counts", term, named))
    return terms, aux


def checked_residuals(
    problem: AbstractProblem, model: Any, batch: Any, key: Key
) -> dict[str, Array]:
    """`problem.stochastic_residuals`, unless they are no residuals."""
    name = type(problem).__name__
    if not isinstance(problem, AbstractResidualProblem):
        raise TypeError(
            f"`problem` must be an `AbstractResidualProblem`, got `{name}`."
        )
    residuals = problem.stochastic_residuals(model, plain(batch), key)
    if not isinstance(residuals, dict) or not residuals:
        raise TypeError(
            f"`{name}.residuals` must return a dictionary of vectors, not empty, got "
            f"{eqx.tree_pformat(residuals)}."
        )
    for term, r in residuals.items():
        if not eqx.is_inexact_array(r) or r.ndim != 1:
            raise ValueError(
                f"`{name}.residuals` must give one real or complex number a point, got "
                f"{eqx.tree_pformat(r)} for {term!r}."
            )
    return residuals


def term_shapes(
    problem: AbstractProblem,
    weighting: AbstractWeighting,
    model: Any,
    batch: Any,
    key: Key,
) -> dict[str, Array]:
    """What `weighting.init` wants to know the shapes of."""
    if Needs.RESIDUALS in weighting.needs:
        return checked_residuals(problem, model, batch, key)
    return checked_terms(problem, model, batch, key)[0]


# How many gradients of single points are held in memory at a time.
_AT_A_TIME = 32


def _kernel_trace(
    objective: Objective, params: PyTree, name: str, size: int, max_points: int
) -> Scalar:
    """The trace of the tangent kernel of the residuals `name`, `size` in number."""
    num = min(max_points, size)

    def row(j, x):
        return x if x.ndim == 0 else x[j * x.shape[0] // num][None]

    def at_point(j: Count) -> Scalar:
        batch = jtu.tree_map(lambda x: row(j, x), objective.batch)

        def residual(params):
            r = objective._residuals_of(params, batch, objective.key)[name]
            if r.shape != (1,):
                raise ValueError(
                    "`weighting` looks at the residuals of single points, but one row "
                    f"of each set gave {name!r} a residual of shape {r.shape}, not "
                    "(1,). Make it pointwise, or use `GradNormBalance`."
                )
            parts = [jnp.real(r), jnp.imag(r)] if jnp.iscomplexobj(r) else [r]
            return jnp.concatenate(parts)

        value, pull = jax.vjp(residual, params)
        (grads,) = jax.vmap(pull)(jnp.eye(value.size, dtype=value.dtype))
        squares = [jnp.sum(squared(g)).astype(float) for g in jtu.tree_leaves(grads)]
        weighted = weighted_sets(batch).get(name.split("/")[0])
        weight = 1.0 if weighted is None else weighted.weight[0].astype(float)
        return weight * sum(squares[1:], squares[0])

    at_a_time = min(num, _AT_A_TIME)
    points = jnp.arange(num, dtype=jnp.int32)
    return jnp.sum(jax.lax.map(at_point, points, batch_size=at_a_time)) * (size / num)
