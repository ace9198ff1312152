"""What an equation sees of a network: its values, with derivatives for attributes."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from .._misc import unknown_name
from ._wanted import bilaplacian, Index, laplacian, Wanted


class Field:
    """One output of a network, at all points at once.

    It stands for its values `(points,)` in arithmetic and in the functions of
    `jax.numpy`. Its derivatives are `u.x`, `u.xx`, `u.xyy`, ... by the names of the
    coordinates; `u.d("theta", "r")` says the same where names run together.
    """

    # So that an array of NumPy leaves arithmetic with a field to the field.
    __array_ufunc__ = None

    def __init__(self, coords: Sequence[str], get: Callable[[Wanted], Array]):
        self._coords = tuple(coords)
        self._get = get

    @property
    def value(self) -> Array:
        """The values, as an array."""
        return self._get(())

    def d(self, *names: str) -> Array:
        """The derivative by these coordinates, in any order."""
        return self._get(tuple(sorted(self._number(name) for name in names)))

    def lap(self, over: str | None = None) -> Array:
        """The Laplacian over the coordinates named, or over all of them.

        Cheaper than the sum of its terms: it is carried as one coefficient.
        """
        return self._get(laplacian(self._numbers(over)))

    def bilap(self, over: str | None = None) -> Array:
        """The Laplacian of the Laplacian, over the coordinates named or all."""
        return self._get(bilaplacian(self._numbers(over)))

    def _numbers(self, over: str | None) -> list[int]:
        if over is None:
            return list(range(len(self._coords)))
        return [i for name in over.split() for i in self._index(name)]

    def _number(self, name: str) -> int:
        if name not in self._coords:
            raise AttributeError(unknown_name("coords", name, self._coords))
        return self._coords.index(name)

    def _index(self, names: str) -> Index:
        """The coordinates that a word such as "xxy" is made of."""
        longest_first = sorted(map(re.escape, self._coords), key=len, reverse=True)
        name = "|".join(longest_first)
        if not re.fullmatch(f"({name})+", names):
            raise AttributeError(
                f"{names!r} is no derivative by the coordinates {list(self._coords)}. "
                "Name the coordinates one after the other, as in `u.xx`."
            )
        return tuple(sorted(map(self._number, re.findall(name, names))))

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._get(self._index(name))

    def __jax_array__(self) -> Array:
        return self.value

    def __neg__(self) -> Array:
        return -self.value

    def __abs__(self) -> Array:
        return jnp.abs(self.value)


def _forward(function: Callable) -> Callable:
    return lambda self, other: function(self.value, _plain(other))


def _backward(function: Callable) -> Callable:
    return lambda self, other: function(_plain(other), self.value)


def _plain(x: Any) -> Any:
    return x.value if isinstance(x, Field) else x


for _name in ("add", "sub", "mul", "truediv", "pow"):
    _operator = getattr(operator, _name)
    setattr(Field, f"__{_name}__", _forward(_operator))
    setattr(Field, f"__r{_name}__", _backward(_operator))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Field, f"__{_name}__", _forward(getattr(operator, _name)))

# So that the functions of `jax.numpy`, which are jitted, take a field for its values.
jtu.register_pytree_node(
    Field,
    lambda field: ((field.value,), field._coords),
    lambda coords, children: Field(coords, lambda wanted: children[0]),
)

# What a coordinate must not be called: the attributes that a field has already.
RESERVED = frozenset({"value", "d", "lap", "bilap"})
