from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Inexact, PyTree

from ._custom_types import Count, Scalar
from ._objective import checked_residuals, Objective
from ._optimizer.residuals import AbstractSquares, dense_jacobian
from ._weighting.base import Needs


# Of how many rows the derivatives are taken at a time.
_AT_A_TIME = 256


class LeastSquares(AbstractSquares):
    """The loss of an [`Objective`][], which as a vector is the residuals in the order
    of their terms and points (real and imaginary parts in turn), times the square roots
    of all that weighs them."""

    objective: Objective

    def __call__(self, params: PyTree) -> Scalar:
        return self.objective(params)

    def residuals(self, params: PyTree) -> Float[Array, " m"]:
        residuals, scales = self._seen(params)
        parts = [scales[n][:, None] * _numbers(r) for n, r in residuals.items()]
        return jnp.concatenate([part.reshape(-1) for part in parts])

    def jacobian(self, params: PyTree) -> Float[Array, "m n"]:
        """By backward passes through one row of the batch each, for terms whose
        residuals look at no other row, which shows in their values. Others take as
        many passes through the batch as [`dense_jacobian`][] does.
        """
        residuals, scales = self._seen(params)
        blocks = []
        for name, r in residuals.items():
            block = self._of_term(params, name, r)
            rows = scales[name][:, None] * block.reshape(r.shape[0], -1)
            blocks.append(rows.reshape(block.shape))
        return jnp.concatenate(blocks)

    def _seen(self, params: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
        """The residuals, and what each of their rows is multiplied by."""
        objective = self.objective
        if objective.microbatches > 1:
            raise ValueError(
                f"`accumulate` = {objective.microbatches} does not go with an "
                "optimizer that looks at the residuals of all points at once. Leave it "
                "out."
            )
        residuals, given = self._weighed(params, objective.batch)

        def of_rows(name, r):
            weight = jnp.asarray(given.get(name, 1.0), _numbers(r).dtype)
            return jnp.broadcast_to(weight, r.shape[:1])

        weights = {name: of_rows(name, r) for name, r in residuals.items()}
        density = lambda n, r: weights[n][:, None] * _numbers(r) ** 2
        terms = {n: jnp.sum(density(n, r)) / r.size for n, r in residuals.items()}
        of_terms = objective.weighting.weights(objective.weighting_state, terms)
        scales = {
            n: jnp.sqrt(of_terms[n].astype(weights[n].dtype) * weights[n] / r.size)
            for n, r in residuals.items()
        }
        return residuals, jax.lax.stop_gradient(scales)

    def _weighed(
        self, params: PyTree, batch: Any
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The residuals on a batch, and the weights of their rows where they are not
        one."""
        objective, cast = self.objective, self.objective.precision.to_compute
        model = cast(eqx.combine(params, objective.rest))
        problem, key = objective.problem, objective.key
        if Needs.RESIDUALS in objective.weighting.needs:
            residuals = checked_residuals(problem, model, cast(batch), key)
            weights = self._of_points()
        else:
            residuals, weights = problem.least_squares(model, cast(batch), key)
        return objective.precision.to_output(residuals), weights

    def _of_points(self) -> dict[str, Array]:
        pointwise = self.objective.pointwise
        assert pointwise is not None  # `train_step` has settled them
        if pointwise.multipliers:
            raise TypeError(
                "`weighting` has multipliers, with which the loss is no sum of "
                "squares, but `optim` looks at its residuals. Use another weighting, "
                "or an optimizer such as `ssbroyden`."
            )
        return pointwise.weights

    def _of_term(self, params, name: str, r: Array) -> Float[Array, "m n"]:
        flat = lambda params: _numbers(self._raw(params, self.objective.batch)[name])
        whole = lambda: dense_jacobian(lambda p: flat(p).reshape(-1), params)
        batch, num_rows = self.objective.batch, r.shape[0]
        at = lambda j: _row(batch, name, j)
        first = jnp.zeros((), jnp.int32)
        alone = jax.eval_shape(lambda p: self._raw(p, at(first))[name], params)
        if num_rows == 1 or alone.shape != (1, *r.shape[1:]):
            return whole()

        def of_row(j: Count) -> tuple[Array, Array]:
            numbers = lambda p: _numbers(self._raw(p, at(j))[name])[0]
            value, pull = jax.vjp(numbers, params)
            (grads,) = jax.vmap(pull)(jnp.eye(value.size, dtype=value.dtype))
            return value, jax.vmap(lambda g: ravel_pytree(g)[0])(grads)

        indices = jnp.arange(num_rows, dtype=jnp.int32)
        size = min(num_rows, _AT_A_TIME)
        values, rows = jax.lax.map(of_row, indices, batch_size=size)
        full = _numbers(r)
        tolerance = jnp.finfo(full.dtype).eps ** 0.5 * jnp.max(jnp.abs(full))
        same = jnp.all(jnp.abs(values - full) <= tolerance)
        block = rows.reshape(full.size, -1)
        return jax.lax.cond(same, lambda: block, whole)

    def _raw(self, params: PyTree, batch: Any) -> dict[str, Array]:
        return self._weighed(params, batch)[0]


def _numbers(r: Inexact[Array, "rows *out"]) -> Float[Array, "rows numbers"]:
    """The real numbers that each row consists of."""
    if jnp.iscomplexobj(r):
        r = jnp.stack([jnp.real(r), jnp.imag(r)], axis=-1)
    return r.reshape(r.shape[0], -1)


def _row(batch: Any, name: str, j: Count) -> Any:
    """The `j`-th row of the set that a residual is named after, and the first of all
    others; of every array, in a batch without named sets."""

    def take(x, j):
        return x if x.ndim == 0 else jax.lax.dynamic_slice_in_dim(x, j, 1)

    rows = lambda part, j: jtu.tree_map(lambda x: take(x, j), part)
    own = name.split("/")[0]
    if not isinstance(batch, dict) or own not in batch:
        return rows(batch, j)
    first = jnp.zeros_like(j)
    return {n: rows(part, j if n == own else first) for n, part in batch.items()}
