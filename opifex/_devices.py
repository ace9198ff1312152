"""Several devices, of one process or of many, and what each of them holds."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree


def mesh_of(devices: Sequence[Any], axis: str) -> Mesh:
    """`devices` in a row, along which XLA shares out the axis that is asked for."""
    auto = (AxisType.Auto,)
    return jax.make_mesh((len(devices),), (axis,), auto, devices=devices)


def replicated(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """`tree` with every array whole on every device.

    Where there are several processes, all must call this with the same values.

    **Arguments:**

    - `tree`: such as a `TrainingState`.
    - `devices`: of JAX; those of all processes, as from `jax.devices()`.
    """
    return _placed(tree, NamedSharding(mesh_of(devices, "data"), PartitionSpec()))


def shared_out(members: PyTree, devices: Sequence[Any]) -> PyTree:
    """`members` of an ensemble with the leading axis of every array shared out evenly.

    Where there are several processes, all must call this with the same values.

    **Arguments:**

    - `members`: such as the states of an ensemble.
    - `devices`: as in [`replicated`][]; they must divide the members evenly.
    """
    mesh = mesh_of(devices, "members")
    return _placed(members, NamedSharding(mesh, PartitionSpec("members")))


def _placed(tree: PyTree, sharding: NamedSharding) -> PyTree:
    return _each_array(lambda x: put(x, sharding), tree)


def _each_array(function: Callable, tree: PyTree) -> PyTree:
    """`tree` with `function` of every array; of the data, if it is one of keys."""

    def apply(x):
        if not eqx.is_array(x):
            return x
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return function(x)
        data = function(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))

    return jtu.tree_map(apply, tree)


def put(x: jax.Array | np.ndarray, sharding: Sharding) -> jax.Array:
    """`x` as `sharding` says. All processes must call this with the same values."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    here = np.asarray(x)  # of which each process takes what its devices are to hold
    return jax.make_array_from_callback(here.shape, sharding, lambda i: here[i])


def local(tree: PyTree) -> PyTree:
    """`tree` with every array whole on the first device of this process, where it can
    be worked with without the other processes. All must call this."""
    return _each_array(lambda x: jnp.asarray(_on_host(x)), tree)


def on_host(tree: PyTree) -> PyTree:
    """The arrays of `tree` as NumPy arrays. Where other processes hold some of them,
    all must call this."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jtu.tree_map(_on_host, arrays), static)


def whole(tree: PyTree) -> PyTree:
    """`tree` with those arrays of which each process holds a part whole on all devices,
    so that each can look at them. All must call this."""
    return _each_array(_whole, tree)


def anywhere(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is set in any process, all of which must call this."""
    if jax.process_count() == 1:
        return flags
    everywhere = multihost_utils.process_allgather(np.array(flags))
    return tuple(np.any(everywhere, axis=0).tolist())


def _on_host(x: jax.Array) -> np.ndarray:
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _whole(x: jax.Array) -> jax.Array:
    if x.is_fully_addressable or x.is_fully_replicated:
        return x
    assert isinstance(x.sharding, NamedSharding)  # as `shared_out` and `shard_map` make
    return put(_on_host(x), NamedSharding(x.sharding.mesh, PartitionSpec()))
