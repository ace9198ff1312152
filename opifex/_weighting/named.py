"""Numbers by the name of their term."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .._custom_types import Scalar, Terms
from .._misc import check_count, check_number, squared, unknown_name


def check_names(names: Iterable[str], terms: Mapping[str, Any]) -> None:
    """Raises if one of `names` is that of no term."""
    for name in names:
        if name not in terms:
            raise ValueError(unknown_name("weighting", name, terms))


def check_name_list(argument: str, names: Any, *, least: int = 0) -> None:
    """Raises unless `names` is a tuple of different strings."""
    good = isinstance(names, tuple) and all(isinstance(n, str) for n in names)
    if not good or len(names) < least or len(set(names)) < len(names):
        raise ValueError(
            f"`{argument}` must be a tuple of {least or 'any number of'} or more "
            f"different names of terms, got {names!r}. Mind the comma: "
            '`("interior",)`.'
        )


def check_average(decay: Any, every: Any, max_weight: Any) -> None:
    """Raises unless a moving average of weights can be taken with these."""
    check_number("decay", decay, 0, 1)
    check_count("every", every)
    check_number("max_weight", max_weight, 0, open_low=True, finite=False)


def ones(terms: Iterable[str]) -> Terms:
    """A weight of one for each name."""
    return {name: jnp.ones((), float) for name in terms}


def zeros(terms: Iterable[str]) -> Terms:
    """A zero for each name."""
    return {name: jnp.zeros((), float) for name in terms}


def as_weights(state: Terms, terms: Terms) -> Terms:
    """The weights of the state, in the dtypes of `terms`."""
    if set(state) != set(terms):
        raise ValueError(
            f"The state was made for terms {sorted(state)}, but the loss has "
            f"{sorted(terms)}. Give the latter as `terms` to `init`, or use "
            "`Recipe.init`, which finds them out."
        )
    return {name: state[name].astype(v.dtype) for name, v in terms.items()}


def to_vector(values: Mapping[str, Array]) -> Float[Array, " terms"]:
    """The values as one vector, in the order of the sorted names."""
    return jnp.stack([values[name].astype(float) for name in sorted(values)])


def from_vector(vector: Float[Array, " terms"], names: Iterable[str]) -> Terms:
    """The inverse of [`to_vector`][]."""
    return {name: vector[i] for i, name in enumerate(sorted(names))}


def ratio(x: Array, y: Array) -> Array:
    """`x / y`, and NaN where `y` is not positive."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), jnp.nan)


def averaged(
    old: Terms, new: Terms, decay: int | float, max_weight: int | float
) -> Terms:
    """`decay * old + (1 - decay) * new`; `old` where the new weight is not finite, as
    that of a term whose gradient vanishes."""

    def average(old: Scalar, new: Scalar) -> Scalar:
        bounded = jnp.minimum(new, max_weight)
        moved = decay * old + (1 - decay) * bounded
        return jnp.where(jnp.isfinite(new), moved, old)

    return {name: average(old[name], new[name]) for name in old}


def add_up(scalars: Iterable[Scalar]) -> Scalar:
    """Their sum."""
    return jnp.sum(jnp.stack(list(scalars)))


def tree_norm(tree: PyTree) -> Scalar:
    """The 2-norm of all arrays of a tree together."""
    leaves = jtu.tree_leaves(tree)
    return jnp.sqrt(add_up(jnp.sum(squared(x)).astype(float) for x in leaves))


def num_points(terms: Mapping[str, jax.ShapeDtypeStruct], name: str) -> int:
    """How many points a term has."""
    shape = terms[name].shape
    if len(shape) != 1:
        raise ValueError(
            f"`terms` must give the number of points of {name!r}, got shape {shape}. "
            f"Pass `terms={{{name!r}: num_points, ...}}` to `init`, or use "
            "`Recipe.init`, which finds it out."
        )
    return shape[0]


def set_of(name: str) -> str:
    """The set of points of a term: equations that share one are `"set/equation"`."""
    return name.split("/")[0]
