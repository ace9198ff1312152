"""How jets go through products of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ._algebra import add, Algebra, Jet
from ._fallback import bind
from ._matmul import apply_weights, laid_out
from ._values import Value, widened


def dot_general(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    a, b = inputs
    if isinstance(a, Jet) and isinstance(b, Jet):
        return [_dot_of_two(algebra, eqn, a, b)]
    x = a if isinstance(a, Jet) else b
    arrays = [x.value, *map(jnp.asarray, x.coefficients.values())]
    value, *coefficients = _dot_with_constant(eqn, a, b, arrays)
    return [Jet(value, dict(zip(x.coefficients, coefficients, strict=True)))]


def _dot_with_constant(
    eqn: JaxprEqn, a: Value, b: Value, arrays: list[Array]
) -> list[Array]:
    """The product for each array of the jet. The matrix of weights comes first: then
    the points stay last by themselves, and no array is transposed."""
    contract, batch = eqn.params["dimension_numbers"]
    first = isinstance(a, Jet)
    weights, mine, theirs = (b, *contract[::-1]) if first else (a, *contract)
    free = weights.ndim - len(mine)
    out_dtype = np.dtype(eqn.params["preferred_element_type"] or weights.dtype)
    usual = eqn.params["precision"] is None and weights.dtype == out_dtype
    if len(mine) == free == 1 and usual and not batch[0]:
        weights = weights if mine == (1,) else laid_out(weights)
        moved = [jnp.moveaxis(x, theirs[0], 0) for x in arrays]
        outs = apply_weights(weights, moved)
    elif not batch[0]:
        dims = ((mine, theirs), batch)
        options = {k: eqn.params[k] for k in ("precision", "preferred_element_type")}
        outs = [jax.lax.dot_general(weights, x, dims, **options) for x in arrays]
    else:
        product = jax.vmap(lambda x: bind(eqn, *((x, b) if first else (a, x))), -1, -1)
        return [product(x) for x in arrays]
    if not first:
        return outs
    # The axes of the weights belong at the end, where the jet came first.
    at_end = range(outs[0].ndim - 1 - free, outs[0].ndim - 1)
    return [jnp.moveaxis(x, range(free), at_end) for x in outs]


def _dot_of_two(algebra: Algebra, eqn: JaxprEqn, a: Jet, b: Jet) -> Jet:
    product = jax.vmap(lambda u, v: bind(eqn, u, v), -1, -1)

    def times(u, v):
        width = max(u.shape[-1], v.shape[-1])
        return product(widened(jnp.asarray(u), width), widened(jnp.asarray(v), width))

    linear = add(
        {k: times(c, b.value) for k, c in a.coefficients.items()},
        {k: times(a.value, c) for k, c in b.coefficients.items()},
    )
    both = algebra.product(a.coefficients, b.coefficients, times)
    return Jet(times(a.value, b.value), add(linear, both))
