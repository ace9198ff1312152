"""Weights times several arrays, in the layout that is fast both ways on a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


@jax.custom_jvp
def apply_weights(weights: Array, inputs: list[Array]) -> list[Array]:
    """`weights @ x` for each `x` of `inputs`.

    **Arguments:**

    - `weights`: `(out, in)`.
    - `inputs`: each `(in, *free, points)`.

    **Returns:** `(out, *free, points)` for each.
    """
    return [_dot(weights, x, 1) for x in inputs]


@apply_weights.defjvp
def _apply_weights_jvp(primals, tangents):
    weights, inputs = primals
    weights_dot, inputs_dot = tangents
    # Reverse mode transposes what is written here. The product with a transposed matrix
    # takes half as long again as one with the matrix laid out anew, so that is done,
    # and the barrier keeps XLA from undoing it.
    turned = jax.lax.optimization_barrier(weights.T)
    by_weights = apply_weights(weights_dot, inputs)
    by_inputs = [_dot(turned, x, 0) for x in inputs_dot]
    out = [a + b for a, b in zip(by_weights, by_inputs, strict=True)]
    return apply_weights(weights, inputs), out


def _dot(weights: Array, x: Array, axis: int) -> Array:
    return jax.lax.dot_general(weights, x, (((axis,), (0,)), ((), ())))


def laid_out(weights: Array) -> Array:
    """The transposed matrix as an array of its own, where XLA would read across it."""
    return jax.lax.optimization_barrier(jnp.transpose(weights))
