"""One propagation of Taylor coefficients gives the value and all derivatives."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jaxtyping import Array

from .._misc import check_count
from ._algebra import Algebra, Jet, multiplicity
from ._custom import custom_function, piecewise_linear
from ._fallback import bind
from ._rules import apply_rule
from ._wanted import (
    coordinates_of_laplacian,
    laplacian,
    order_of,
    terms_of,
    Wanted,
)
from .base import AbstractDerivatives, Pointwise


class Taylor(AbstractDerivatives):
    """Taylor coefficients pushed through the function's own operations, once.

    Only the coefficients that are wanted, or met on the way to them, are carried, each
    in an array of its own, for all points at once. Primitives of JAX that have no rule
    are differentiated by nested forward mode, each by itself; a message at debug level
    says which.

    **Arguments:**

    - `chunk`: a Laplacian over more coordinates than this is taken in chunks of as
        many, each with the activations computed anew in the backward pass.
    - `block`: on a CPU, where more than eight coefficients are carried, about so many
        points are taken at a time, likewise: their coefficients stay in the cache, and
        the memory for the gradient does not grow with the number of points.

    ??? cite "Reference"

        A. Griewank and A. Walther, "Evaluating derivatives", 2nd ed., SIAM 2008,
        chapter 13. M. Bettencourt, M. Johnson and D. Duvenaud, "Taylor-mode automatic
        differentiation for higher-order derivatives in JAX", NeurIPS workshop 2019.
    """

    chunk: int = eqx.field(static=True, default=32)
    block: int = eqx.field(static=True, default=256)

    def __check_init__(self):
        check_count("chunk", self.chunk)
        check_count("block", self.block)

    def __call__(self, function, points, wanted, key=None):
        del key
        wanted = list(wanted)
        long = [w for w in wanted if len(coordinates_of_laplacian(w)) > self.chunk]
        short = [w for w in wanted if w not in long]
        value, found = self._in_blocks(function, points, short)
        for w in long:
            over = coordinates_of_laplacian(w)
            found[w] = _in_chunks(function, points, over, self.chunk)
        return value, found

    def _in_blocks(
        self, function: Pointwise, points: Array, wanted: list[Wanted]
    ) -> tuple[Array, dict[Wanted, Array]]:
        def some(points):
            return propagate(function, points, wanted, seeds_of(wanted, points))

        num, dim = points.shape
        many = len(Algebra(wanted).keys) > _MANY and jax.default_backend() == "cpu"
        if not many or num <= self.block:
            return some(points)
        blocks = -(-num // self.block)
        size = -(-num // blocks)
        filled = jnp.concatenate([points, points[: blocks * size - num]])
        filled = filled.reshape(blocks, size, dim)
        join = lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)[..., :num]
        return jax.tree.map(join, jax.lax.map(jax.checkpoint(some), filled))


# With as many coefficients, arithmetic on them outweighs the second forward pass that
# blocks cost. Measured: 1.2 to 1.6 times faster with 9 to 11, 0.8 to 1 with 3 or 4.
_MANY = 8


def seeds_of(wanted: Iterable[Wanted], points: Array) -> dict[Any, Any]:
    """The coordinates that `wanted` needs, each as a direction."""
    used = {i for w in wanted for index, _ in terms_of(w) for i in index}
    unit = np.eye(points.shape[1], dtype=points.dtype)
    return {(i,): unit[:, i : i + 1] for i in sorted(used)}


def _in_chunks(
    function: Pointwise, points: Array, over: tuple[int, ...], size: int
) -> Array:
    """A Laplacian over many coordinates, some at a time, so that neither the program
    nor the memory for its gradient grows with their number."""
    dim = points.shape[1]
    unit = np.eye(dim, dtype=points.dtype)[list(over)]
    filled = np.concatenate([unit, np.zeros((-len(over) % size, dim), points.dtype)])
    directions = jnp.asarray(filled.reshape(-1, size, dim))
    wanted = laplacian(range(size))

    @jax.checkpoint
    def part(total, some):
        seeds = {(i,): v[:, None] for i, v in enumerate(some)}
        return total + propagate(function, points, [wanted], seeds)[1][wanted], None

    shape = jax.eval_shape(jax.vmap(function, out_axes=-1), points)
    start = jnp.zeros(shape.shape, shape.dtype)
    return jax.lax.scan(part, start, directions)[0]


def propagate(
    function, points: Array, wanted: Iterable[Wanted], seeds: dict[Any, Any]
) -> tuple[Array, dict[Wanted, Array]]:
    """Derivatives along directions: `seeds` says what the variable `(i,)` stands for.

    **Arguments:**

    - `function`, `points`, `wanted`: as of [`AbstractDerivatives`][].
    - `seeds`: by variable, a direction `(dim, 1)`, or `(dim, points)` if it differs
        from point to point.
    """
    wanted = list(wanted)
    algebra = Algebra(wanted)
    example = jax.ShapeDtypeStruct(points.shape[1:], points.dtype)
    jaxpr = jax.make_jaxpr(function)(example)
    # Operations of JAX take scalars beside arrays; for many points that is a promotion
    # of ranks.
    with jax.numpy_rank_promotion("allow"):
        inputs = [Jet(points.T, seeds)]
        (out,) = _interpret(algebra, jaxpr.jaxpr, jaxpr.consts, inputs)
    if not isinstance(out, Jet):
        out = Jet(jnp.asarray(out)[..., None], {})
    lost = [w for w in wanted if w not in out.coefficients]
    if algebra.met_kink and order_of(lost) > 1:
        piecewise_linear()
    shape = (*out.value.shape[:-1], points.shape[0])
    full = lambda x: jnp.broadcast_to(x, shape)
    zero = jnp.zeros((), out.value.dtype)
    found = {
        w: full(multiplicity(w) * jnp.asarray(out.coefficients.get(w, zero)))
        for w in wanted
    }
    return full(out.value), found


# Calls of other functions, which are looked into. Forward mode cannot pass a function
# with a reverse rule of its own, so that is looked into as well.
_CALLS = (
    "jit pjit closed_call core_call remat remat2 checkpoint custom_vjp_call "
    "custom_vjp_call_jaxpr"
).split()


def _interpret(
    algebra: Algebra, jaxpr: Jaxpr, consts: list[Any], inputs: list[Any]
) -> list[Any]:
    values: dict[Any, Any] = {}
    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
    for eqn in jaxpr.eqns:
        outs = _equation(algebra, eqn, [read(x) for x in eqn.invars])
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _equation(algebra: Algebra, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    name = eqn.primitive.name
    if not any(isinstance(x, Jet) for x in inputs):
        out = bind(eqn, *inputs)
        return out if eqn.primitive.multiple_results else [out]
    if name in _CALLS:
        called = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
        opened = getattr(called, "jaxpr", called)
        return _interpret(algebra, opened, getattr(called, "consts", []), inputs)
    if name == "custom_jvp_call":
        return custom_function(algebra, eqn, inputs)
    return apply_rule(algebra, eqn, inputs)
