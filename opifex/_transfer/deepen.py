import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._alike import functions_of
from .base import AbstractTransfer, arrays_of


class Deepen(AbstractTransfer):
    """More layers, which do nothing at first.

    The new ones come before the last of every list of layers in which the models
    differ. Their square matrices are the identity, all else in them is zero. As they
    stand between two activations, these must be idempotent, `f(f(x)) = f(x)`, as
    `jax.nn.relu` is: for others, such as `tanh`, no hidden layer is the identity, and
    an error says so. Deepen those by residual blocks whose last layer is zero.

    Restriction leaves the new layers out, so it is the inverse of prolongation, but
    what they have learned since is lost.

    ??? cite "Reference"

        T. Chen, I. Goodfellow and J. Shlens, "Net2Net: accelerating learning via
        knowledge transfer", ICLR 2016, section 2.4.
    """

    def axes(self, path, coarse, fine):
        del path, coarse
        return (None,) * len(fine)

    def pairs(self, coarse, fine):
        have, want = arrays_of(coarse), arrays_of(fine)
        old, new = _lengths(coarse), _lengths(fine)
        pairs = {}
        for path, array in want.items():
            name, place, rest = _parts(path)
            if name is None or old.get(name, 0) == new[name]:
                continue
            _check_room(name, old.get(name, 0), new[name])
            last = old[name] - 1
            if place >= last:
                kept = place - (new[name] - 1) + last
                source = f"{name}[{kept}]{rest}"
                known = source in have and place == new[name] - 1
                pairs[path] = source if known else _identity(path, array)
        if pairs:
            _check_idempotent(fine)
        return pairs

    def step_ratio(self, coarse, fine):
        del coarse, fine
        return 1.0


def _parts(path: str) -> tuple[str | None, int, str]:
    """The list that an array is in, its place there, and the rest of its path."""
    found = re.match(r"(.*?)\[(\d+)\](.*)$", path)
    return (None, 0, path) if found is None else (found[1], int(found[2]), found[3])


def _lengths(model: PyTree) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for path in arrays_of(model):
        name, place, _ = _parts(path)
        if name is not None:
            lengths[name] = max(lengths.get(name, 0), place + 1)
    return lengths


def _identity(path: str, array: Any) -> Array:
    shape = tuple(array.shape)
    if len(shape) != 2:
        return jnp.zeros(shape, array.dtype)
    if shape[0] != shape[1]:
        raise ValueError(
            f"`{path}`, a new layer, has shape {shape} in the fine model, so it cannot "
            "be the identity. Give it as many outputs as inputs."
        )
    return jnp.eye(shape[0], dtype=array.dtype)


def _check_room(name: str, old: int, new: int) -> None:
    if not 2 <= old < new:
        raise ValueError(
            f"`{name}` has {old} layers in the coarse model and {new} in the fine one. "
            "`Deepen` needs at least two in the coarse model, and more in the fine one."
        )


def _check_idempotent(model: PyTree) -> None:
    x = np.linspace(-3.0, 3.0, 25)
    for path, function in functions_of(model).items():
        try:
            once = np.asarray(function(x))
            twice = np.asarray(function(once))
        except Exception:  # not an elementwise function, so no activation
            continue
        if once.shape == x.shape and not np.array_equal(once, twice):
            name = getattr(function, "__name__", "the function")
            raise ValueError(
                f"`{path}` is {name}, and {name}({name}(x)) is not {name}(x): so no "
                "hidden layer can be the identity. Use an idempotent activation, such "
                "as `jax.nn.relu`, or give both models the same depth."
            )
