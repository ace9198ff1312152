"""A model of single rows, written in Equinox, as a module of NNX."""

from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from flax import nnx
from jaxtyping import Array, Inexact


class OfRows(nnx.Module):
    """An Equinox model of one row, as an `nnx.Module` of batches of rows.

    Every real or complex array of it is an `nnx.Param`.
    """

    def __init__(self, model: eqx.Module):
        """**Arguments:**

        - `model`: maps a row to its answer. Its arrays must be real or complex.
        """
        arrays, self.rest = eqx.partition(model, eqx.is_inexact_array)
        named = jtu.tree_leaves_with_path(arrays)
        self.weights = nnx.Dict({_name(path): nnx.Param(x) for path, x in named})

    @property
    def model(self) -> Any:
        """The Equinox model, with the values that the parameters have now."""
        take = lambda path, x: self.weights[_name(path)][...] if x is None else x
        is_none = lambda x: x is None
        return jtu.tree_map_with_path(take, self.rest, is_leaf=is_none)

    def __call__(self, x: Inexact[Array, "rows ..."]) -> Inexact[Array, "rows ..."]:
        return jax.vmap(self.model)(x)


def _name(path: tuple[Any, ...]) -> str:
    """`"spectral_0_weight"`."""
    return "_".join(jtu.keystr((entry,), simple=True) for entry in path)
