from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Int, PyTree

from ._custom_types import Count, Key, Scalar, Terms
from ._misc import unknown_name
from ._precision import Precision
from ._problem.base import AbstractProblem, Aux
from ._weighting.base import AbstractWeighting


class Evaluation(NamedTuple):
    """What an evaluation of the loss brings to light beside its value."""

    terms: Terms
    weights: Terms
    metrics: Terms
    rest: PyTree  # the arrays that are not trained, buffers updated


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

    def __call__(self, params: PyTree) -> Scalar:
        if self.microbatches == 1:
            return self._evaluate(params, None, self.batch, self.key, {})[0]
        shares = self._shares(params)

        def value(i):
            batch, key, mine = self._microbatch(i, shares)
            return self._evaluate(params, None, batch, key, mine)[0]

        return jnp.sum(jax.lax.map(value, self._indices()))

    def value_and_grad(self, params: PyTree) -> tuple[Scalar, Evaluation, PyTree]:
        """The value, what came with it, and the direction of steepest ascent."""
        if self.microbatches == 1:
            return self._gradient(params, None, self.batch, self.key, {})
        shares = self._shares(params)

        def add(carry, i):
            rest, grads = carry
            batch, key, mine = self._microbatch(i, shares)
            value, seen, more = self._gradient(params, rest, batch, key, mine)
            terms, metrics = _times(mine, seen.terms), _times(mine, seen.metrics)
            grads = jtu.tree_map(jnp.add, grads, more)
            return (seen.rest, grads), (value, terms, metrics, seen.weights)

        arrays = eqx.filter(self.rest, eqx.is_array)
        start = (arrays, jtu.tree_map(jnp.zeros_like, params))
        (rest, grads), parts = jax.lax.scan(add, start, self._indices())
        value, terms, metrics, _ = jtu.tree_map(lambda x: jnp.sum(x, axis=0), parts)
        weights = jtu.tree_map(lambda x: x[0], parts[3])
        return value, Evaluation(terms, weights, metrics, rest), grads

    def _gradient(self, params, arrays, batch, key, shares):
        scale = self.precision.loss_scale

        def scaled(params):
            value, seen = self._evaluate(params, arrays, batch, key, shares)
            return value * scale, (value, seen)

        if self.remat:
            scaled = jax.checkpoint(scaled)
        grads, (value, seen) = jax.grad(scaled, has_aux=True)(params)
        # JAX gives the gradient of a real function of a complex parameter as the
        # conjugate of the direction of steepest ascent.
        return value, seen, jtu.tree_map(lambda g: jnp.conj(g) / scale, grads)

    def _evaluate(
        self, params, arrays, batch, key, shares
    ) -> tuple[Scalar, Evaluation]:
        rest = eqx.combine(arrays, self.rest)
        cast = self.precision.to_compute
        model = cast(eqx.combine(params, rest))
        terms, aux = checked_terms(self.problem, model, cast(batch), key)
        terms, metrics = self.precision.to_output((terms, aux.metrics))
        weights = self.weighting.weights(self.weighting_state, terms)
        weights = jax.lax.stop_gradient(weights)
        parts = [weights[n] * v for n, v in _times(shares, terms).items()]
        rest = rest if aux.model is None else _updated(rest, aux.model)
        arrays = eqx.filter(rest, eqx.is_array)
        return sum(parts[1:], parts[0]), Evaluation(terms, weights, metrics, arrays)

    def _indices(self) -> Int[Array, " microbatches"]:
        return jnp.arange(self.microbatches, dtype=jnp.int32)

    def _microbatch(self, i: Count, shares: dict[str, Array]):
        mine = {name: share[i] for name, share in shares.items()}
        return self._rows(i), jr.fold_in(self.key, i), mine

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
