from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._custom_types import Count, Flag
from .._pack import stack_scalars
from .._state import StepInfo
from .base import Faults


# Consecutive steps kept and not; ways back since the ground last moved; last resorts
# taken; norms that entered the quantile; ways back that have not healed; those among
# them that shortened the steps (the scale itself may have been lowered by others, for
# good); those that lowered the bound of the norm.
_COUNTERS = (
    *("healthy", "failures", "attempts", "reinits", "observed"),
    *("unhealed", "cuts", "lowered"),
)
# The lowest loss of a kept step; the quantile of the logarithm of the gradient norm;
# the norm beyond which a gradient is a spike. (Kept, though it follows from the
# quantile: what decides about a step enters every array of the state, so be it cheap.)
_LEVELS = ("lowest", "norm_quantile", "spike_norm")


class Record(eqx.Module):
    """The part of the state that is counted, not remembered.

    In few arrays, because each costs a small network dearly; see `filter_scan`.
    """

    suspects: Bool[Array, " leaves"]  # arrays in which the first fault since showed
    counters: Int[Array, " counters"]
    levels: Float[Array, " levels"]
    faults: Faults

    @staticmethod
    def none(num_leaves: int) -> "Record":
        """Nothing has been seen yet."""
        return Record(
            suspects=jnp.zeros(num_leaves, bool),
            counters=jnp.zeros(len(_COUNTERS), jnp.int32),
            levels=jnp.array([jnp.inf, 0.0, jnp.inf], jnp.result_type(float)),
            faults=Faults.none(),
        )

    def __getattr__(self, name: str) -> Array:
        for names, values in ((_COUNTERS, "counters"), (_LEVELS, "levels")):
            if name in names:
                return getattr(self, values)[names.index(name)]
        raise AttributeError(name)

    def change(self, **new) -> "Record":
        """A record with the numbers that are named replaced."""
        arrays = {name: new.pop(name) for name in ("suspects", "faults") if name in new}
        value = lambda name: new.get(name, getattr(self, name))
        return replace(
            self,
            counters=stack_scalars([value(name) for name in _COUNTERS]),
            levels=stack_scalars([value(name) for name in _LEVELS]),
            **arrays,
        )

    def noted(
        self, step: Count, info: StepInfo, back: Flag, redrawn: Flag
    ) -> tuple[Bool[Array, " leaves"], Faults]:
        """The suspects and the faults, after a step that was not kept; whether the run
        went `back`, and to parameters that were partly `redrawn`."""
        begins = ~jnp.any(self.suspects)
        suspects = jnp.where(begins, ~jnp.isfinite(info.leaf_norms), self.suspects)
        faults = self.faults.record(
            step, info, skipped=~back, rolled_back=back, reinitialised=redrawn
        )
        return suspects, faults.went_back(step, back)
