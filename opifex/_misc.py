import difflib
import math
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from ._custom_types import Flag, Scalar
from ._pack import pack


class Frozen(eqx.Module):
    """Something inside a model that is never trained, whatever arrays it holds."""

    value: Any


def tree_where(pred: Bool[Array, "..."], true: PyTree, false: PyTree) -> PyTree:
    """`jnp.where` over the array leaves of two trees of one structure.

    `pred` has the leading axes of every leaf: none for a single run, `members` for an
    ensemble.
    """
    arrays, static = eqx.partition(true, eqx.is_array)
    others = eqx.filter(false, eqx.is_array)
    unpack = lambda x: x
    if pred.ndim == 0:
        (arrays, unpack), (others, _) = pack(arrays), pack(others)

    def pick(t, f):
        return jnp.where(pred.reshape(pred.shape + (1,) * (t.ndim - pred.ndim)), t, f)

    return eqx.combine(unpack(jtu.tree_map(pick, arrays, others)), static)


def trainable(model: PyTree) -> PyTree[bool]:
    """What is trained unless said otherwise: every real or complex array that is not
    inside an `eqx.nn.State`, where Equinox keeps its buffers, or a [`Frozen`][].

    **Returns:** a pytree of the structure of `model`, or a prefix of it.
    """
    is_buffers = lambda x: isinstance(x, eqx.nn.State | Frozen)
    train = lambda x: not is_buffers(x) and eqx.is_inexact_array(x)
    return jtu.tree_map(train, model, is_leaf=is_buffers)


def tree_allfinite(tree: PyTree) -> Flag:
    """Whether every inexact array of `tree` is free of NaN and infinities."""
    leaves = jtu.tree_leaves(eqx.filter(tree, eqx.is_inexact_array))
    return jnp.all(jnp.stack([jnp.array(True), *map(_allfinite, leaves)]))


def _allfinite(x: Array) -> Flag:
    return jnp.all(jnp.isfinite(x))


def tree_norm(tree: PyTree) -> Scalar:
    """The Euclidean norm of all arrays of `tree` together."""
    arrays = jtu.tree_leaves(eqx.filter(tree, eqx.is_inexact_array))
    squares = [jnp.sum(squared(x)).astype(float) for x in arrays]
    return safe_sqrt(jnp.sum(jnp.stack([jnp.zeros(()), *squares])))


def tree_copy(tree: PyTree) -> PyTree:
    """A tree whose arrays are strongly typed and share no buffer with those of `tree`.

    Needed before donation: one buffer must not be given away twice, nor be the user's.
    """
    return jtu.tree_map(
        lambda x: jnp.array(x, dtype=x.dtype) if eqx.is_array(x) else x, tree
    )


def array_library(x: Any) -> Any:
    """NumPy for what is on the host, where an operation of JAX costs more than the
    arithmetic; or `jax.numpy`."""
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def squared(x: Inexact[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`|x|^2`, real also for complex `x`."""
    return jnp.real(x * jnp.conj(x))


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root, with a gradient of zero at zero (where it has none)."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), x)


def unknown_name(argument: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown option: what was given, what is near, what exists."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown name {name!r} in `{argument}`.{hint} Known names are {known}."


def check_count(argument: str, value: Any, *, least: int = 1) -> None:
    """Raises unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"`{argument}` must be a whole number of at least {least}, got {value!r}."
        )


def check_number(
    argument: str,
    value: Any,
    low: int | float = -math.inf,
    high: int | float = math.inf,
    *,
    open_low: bool = False,
    finite: bool = True,
) -> None:
    """Raises unless `value` is a number between `low` and `high`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = number and (low < value if open_low else low <= value) and value <= high
    if inside and not (finite and math.isinf(value)):
        return
    bounds = [f"{'greater than' if open_low else 'at least'} {low}"]
    bounds = bounds if math.isfinite(low) else []
    bounds += [f"at most {high}"] if math.isfinite(high) else []
    kind = "a finite number" if finite else "a number"
    raise ValueError(
        f"`{argument}` must be {' '.join([kind, ' and '.join(bounds)]).strip()}, got "
        f"{value!r}."
    )


def check_finite(argument: str, tree: PyTree) -> None:
    """Raises if a concrete array of `tree` is empty, or holds NaN or an infinity."""
    for path, leaf in jtu.tree_leaves_with_path(eqx.filter(tree, eqx.is_array)):
        where = f"`{argument}{jtu.keystr(path)}`"
        if leaf.size == 0:
            raise ValueError(f"{where} is empty: its shape is {leaf.shape}.")
        if isinstance(leaf, Tracer) or not eqx.is_inexact_array(leaf):
            continue
        # By NumPy, which works on known arrays while JAX is tracing.
        finite = np.isfinite(np.asarray(leaf).astype(complex))
        if not finite.all():
            bad = int(np.argmin(finite.reshape(leaf.shape[0], -1).all(1)))
            raise ValueError(
                f"{where} holds NaN or an infinity, first in row {bad}. Remove such "
                "rows, or give them a finite value, before training."
            )
