"""What flows through an equation, and what it is at the points."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from ._algebra import Algebra, Coefficients, Jet
from ._fallback import bind


Value: TypeAlias = Any  # a Jet or an array
Rule: TypeAlias = Callable[[Algebra, JaxprEqn, list[Value]], list[Value]]


def value_of(x: Value) -> Any:
    return x.value if isinstance(x, Jet) else x


def lift(x: Value) -> Any:
    """The value of `x`, with an axis for the points unless it is a number."""
    if isinstance(x, Jet):
        return x.value
    return x[..., None] if np.ndim(x) else x


def coefficients_of(x: Value) -> Coefficients:
    return x.coefficients if isinstance(x, Jet) else {}


def broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    """By NumPy what is known, for it to stay known."""
    return (np if isinstance(x, np.ndarray) else jnp).broadcast_to(x, shape)


def widened(x: Any, width: int) -> Any:
    return broadcast(x, (*x.shape[:-1], width))


def values_only(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """Without derivatives: the primitive at each point."""
    del algebra
    axes = [-1 if isinstance(x, Jet) else None for x in inputs]
    values = [value_of(x) for x in inputs]
    out = jax.vmap(lambda *v: bind(eqn, *v), in_axes=axes, out_axes=-1)(*values)
    outs = out if eqn.primitive.multiple_results else [out]
    return [Jet(v, {}) for v in outs]
