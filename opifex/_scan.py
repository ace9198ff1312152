from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._pack import is_small_vector, pack


def filter_scan(
    step: Callable[[Any], tuple[Any, Any]], init: PyTree, *, length: int
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` for training loops.

    The carry may hold non-arrays (activation functions, ...). Its small vectors, and
    all that is small in the output, travel as one array a dtype: on a CPU each array
    that a step writes by itself costs a small network dearly.

    **Arguments:**

    - `step`: maps the carry to `(new carry, output)`.
    - `init`: the first carry.
    - `length`: how many steps.

    **Returns:** the last carry, and the outputs stacked along a new leading axis.
    """
    dynamic, static = eqx.partition(init, eqx.is_array)
    unpack_output = []

    def body(packed, _):
        carry, out = step(eqx.combine(unpack(packed), static))
        changed = eqx.filter(carry, eqx.is_array, inverse=True)
        if jtu.tree_leaves(changed) != jtu.tree_leaves(static):
            raise ValueError(
                "`step` changed a leaf of the carry that is no array, from "
                f"{jtu.tree_leaves(static)} to {jtu.tree_leaves(changed)}. Make what "
                "changes an array."
            )
        packed_out, unpack_out = pack(out)
        unpack_output[:] = [unpack_out]
        return pack(eqx.filter(carry, eqx.is_array), is_small_vector)[0], packed_out

    packed, unpack = pack(dynamic, is_small_vector)
    packed, outs = jax.lax.scan(body, packed, None, length=length)
    return eqx.combine(unpack(packed), static), unpack_output[0](outs)
