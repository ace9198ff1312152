from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from ._devices import mesh_of
from ._misc import check_count, unknown_name


How = Literal["auto", "map", "vmap"]
_HOW = ("auto", "map", "vmap")


def ensemble(
    run: Callable[[Any], Any],
    members: PyTree,
    *,
    how: How = "auto",
    batch_size: int = 1,
    devices: Sequence[Any] = (),
) -> PyTree:
    """Applies `run` to every member: to keys, to states, to anything stacked.

    The members never see each other: one that fails leaves the others bitwise alone.

    **Arguments:**

    - `run`: any pure function of one member.
    - `members`: a pytree whose arrays all have a leading axis of members.
    - `how`: `"vmap"` runs them in lockstep, `"map"` one after the other in one program;
        `"auto"` is `"map"` on a CPU, where lockstep gains nothing and spoils the
        cache, and `"vmap"` elsewhere. They agree to rounding.
    - `batch_size`: how many `"map"` runs in lockstep at a time.
    - `devices`: of JAX; the members are shared out evenly among them, if there are
        several.

    **Returns:** the results, stacked.
    """
    if how not in _HOW:
        raise ValueError(unknown_name("how", how, _HOW))
    check_count("batch_size", batch_size)
    size = _num_members(members)
    if len(devices) > 1 and size % len(devices):
        raise ValueError(
            f"`devices` must divide the members evenly, got {len(devices)} devices for "
            f"{size} members."
        )
    if how == "auto":
        how = "map" if jax.default_backend() == "cpu" else "vmap"
    arrays, static = eqx.partition(members, eqx.is_array)
    # What is not an array is the same for all; it leaves by this side door.
    statics = []

    def one(arrays):
        result = run(eqx.combine(arrays, static))
        dynamic, rest = eqx.partition(result, eqx.is_array)
        statics[:] = [rest]
        return dynamic

    def many(arrays):
        if how == "vmap":
            return jax.vmap(one)(arrays)
        return jax.lax.map(
            one, arrays, batch_size=batch_size if batch_size > 1 else None
        )

    if len(devices) > 1:
        # Of automatic axes: `members` need not be laid out over the devices yet.
        mesh, spec = mesh_of(devices, "members"), PartitionSpec("members")
        many = jax.shard_map(
            many, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
    results = many(arrays)
    return eqx.combine(results, statics[0])


def _num_members(members: PyTree) -> int:
    sizes = {
        jnp.shape(x)[:1] for x in jtu.tree_leaves(eqx.filter(members, eqx.is_array))
    }
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            "The arrays of `members` must share one leading axis, got axes of "
            f"{sorted(sizes)}."
        )
    return sizes.pop()[0]


class Ensemble(eqx.Module):
    """A chunk of many members: `fit(Ensemble(recipe), states, num_chunks=...)`.

    **Arguments:**

    - `chunk`: of one member, as a [`Recipe`][].
    - `how`, `batch_size`, `devices`: as in [`ensemble`][].
    """

    chunk: Callable
    how: How = eqx.field(static=True, default="auto")
    batch_size: int = eqx.field(static=True, default=1)
    devices: tuple[Any, ...] = eqx.field(static=True, default=())

    def __call__(self, states):
        return ensemble(
            self.chunk,
            states,
            how=self.how,
            batch_size=self.batch_size,
            devices=self.devices,
        )
