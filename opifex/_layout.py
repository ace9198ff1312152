"""How the arrays of a state lie in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from ._devices import put
from ._manifest import host_array, Leaves


# Bytes; TensorStore's compression takes no more than 2^31 at once.
_PIECE = 1 << 28


def packed(leaves: Leaves) -> dict[str, np.ndarray]:
    """The bytes of all arrays, one after another, in pieces that have names.

    Few pieces: every array by itself costs Orbax time, and TensorStore 0.1.86 never
    frees what it notes of one. Where there are several processes, all must call this.
    """
    flat = [np.ascontiguousarray(host_array(x)).reshape(-1) for _, x in leaves]
    total = np.concatenate([x.view(np.uint8) for x in flat])
    starts = range(0, total.size, _PIECE)
    return {_name(i): total[at : at + _PIECE] for i, at in enumerate(starts)}


def template(leaves: Leaves, *, packs: bool) -> dict[str, Any]:
    """What Orbax is to read: what `packed` gives, or every array by itself, as until
    format 2."""
    if not packs:
        return jax.tree.map(ocp.utils.to_shape_dtype_struct, one_by_one(leaves))
    size = sum(_data(x).nbytes for _, x in leaves)
    starts = range(0, size, _PIECE)
    lengths = [min(_PIECE, size - at) for at in starts]
    return {_name(i): np.empty(n, np.uint8) for i, n in enumerate(lengths)}


def unpacked(stored: Mapping[str, Any], leaves: Leaves, *, packs: bool) -> list[Array]:
    """The arrays that were stored, each where that of `leaves` is."""
    if not packs:
        return [stored[_name(i)] if x.size else x for i, x in _numbered(leaves)]
    total = np.concatenate([stored[name] for name in sorted(stored)])
    arrays, end = [], 0
    for _, x in leaves:
        data = _data(x)
        start, end = end, end + data.nbytes
        part = total[start:end].view(data.dtype).reshape(data.shape)
        array = put(part, data.sharding) if data.committed else jnp.array(part)
        arrays.append(
            array if data is x else jr.wrap_key_data(array, impl=jr.key_impl(x))
        )
    return arrays


def one_by_one(leaves: Leaves) -> dict[str, Array]:
    """The arrays that have elements, by name; Orbax refuses the others."""
    return {_name(i): x for i, x in _numbered(leaves) if x.size}


def _numbered(leaves: Leaves) -> list[tuple[int, Array]]:
    count, numbered = 0, []
    for _, x in leaves:
        numbered.append((count, x))
        count += x.size > 0
    return numbered


def _name(i: int) -> str:
    return f"{i:05d}"


def _data(x: Array) -> Array:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jr.key_data(x) if is_key else x
