from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.sharding import NamedSharding, PartitionSpec

from .._custom_types import Batch, SamplerState
from .._devices import mesh_of
from .base import AbstractSampler


class DataParallel(AbstractSampler[SamplerState, Batch]):
    """Shares the batch of another sampler out over devices.

    Each device works on its part of every set of points; XLA adds up what they find.
    The model and the rest of the state are whole on every device: begin with
    `replicated(state, devices)`, so that the chunk is compiled once. The loss agrees
    with that of one device to rounding.

    A set whose rows the devices do not divide evenly stays whole on each of them, such
    as the two ends of an interval.

    **Arguments:**

    - `sampler`: hands out the batches.
    - `devices`: of JAX; those of all processes, if there are several.

    **Raises:** `ValueError`, where the chunk is traced, if no set could be shared out.
    """

    sampler: AbstractSampler[SamplerState, Batch]
    devices: tuple[Any, ...] = eqx.field(static=True, converter=tuple)

    def __check_init__(self):
        if not self.devices:
            raise ValueError(
                "`devices` is empty; give those of JAX, as from `jax.devices()`."
            )

    def init(self, key):
        return self.sampler.init(key)

    def batch(self, state, key, step):
        batch = self.sampler.batch(state, key, step)
        if len(self.devices) == 1:
            return batch
        arrays, static = eqx.partition(batch, eqx.is_array)
        if not any(map(self._divides, jtu.tree_leaves(arrays))):
            shapes = [x.shape for x in jtu.tree_leaves(arrays)]
            raise ValueError(
                f"{len(self.devices)} `devices` divide no set of the batch evenly: its "
                f"arrays have shapes {shapes}. Choose a multiple of the devices."
            )
        return eqx.combine(jtu.tree_map(self._shared_out, arrays), static)

    def resample(self, state, problem, model, key):
        return self.sampler.resample(state, problem, model, key)

    def _divides(self, x) -> bool:
        return x.ndim > 0 and x.shape[0] % len(self.devices) == 0

    def _shared_out(self, x):
        spec = PartitionSpec("data") if self._divides(x) else PartitionSpec()
        sharding = NamedSharding(mesh_of(self.devices, "data"), spec)
        return jax.lax.with_sharding_constraint(x, sharding)
