import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Bool, PyTree

from .._custom_types import Flag, Key
from .._misc import squared
from .._pack import pack
from .._state import TrainingState


def redraw_if(
    again: Flag, model: PyTree, suspects: Bool[Array, " leaves"], at: TrainingState
) -> PyTree:
    """`model`, or if `again` with its suspect arrays shrunk to half and perturbed.

    The noise has the size of the array (J. T. Ash and R. P. Adams, "On warm-starting
    neural network training", NeurIPS 2020).
    """
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    leaves, treedef = jtu.tree_flatten(arrays)
    key = at.key_for("recover")

    def draw(leaves):
        # All in one draw: each by itself took a second to compile.
        (vectors, _), unpack = pack(leaves, lambda x: True)
        noise = {
            name: jr.normal(jr.fold_in(key, i), x.shape, x.dtype)
            for i, (name, x) in enumerate(sorted(vectors.items()))
        }
        return [
            jnp.where(suspects[i], _perturbed(x, z), x)
            for i, (x, z) in enumerate(zip(leaves, unpack((noise, [])), strict=True))
        ]

    leaves = jax.lax.cond(again, draw, lambda leaves: leaves, leaves)
    return eqx.combine(jtu.tree_unflatten(treedef, leaves), rest)


def redrawn(x: Array, key: Key) -> Array:
    """An array shrunk to half, and perturbed by noise of its size."""
    return _perturbed(x, jr.normal(key, x.shape, x.dtype))


def _perturbed(x: Array, noise: Array) -> Array:
    size = jnp.sqrt(jnp.mean(squared(x)))
    return 0.5 * (x + size.astype(x.dtype) * noise)
