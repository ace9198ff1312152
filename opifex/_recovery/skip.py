from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp

from .._custom_types import Count
from .._misc import check_count, tree_where
from .._results import RESULTS
from .base import AbstractRecovery, Faults


class _SkipState(eqx.Module):
    consecutive: Count
    faults: Faults


class Skip(AbstractRecovery[_SkipState]):
    """A step whose loss or gradient is not finite is not taken.

    **Arguments:**

    - `max_attempts`: how many steps in a row may be skipped before the run is given up.
    """

    max_attempts: int = 10

    def __check_init__(self):
        check_count("max_attempts", self.max_attempts)

    def init(self, model, opt_state, num_leaves):
        del model, opt_state, num_leaves
        return _SkipState(jnp.zeros((), jnp.int32), Faults.none())

    @property
    def first_clip_norm(self):
        return None

    def decide(self, before, proposed, info):
        state = before.recovery_state
        kept = info.result == RESULTS.successful
        faults = jax.lax.cond(
            kept,
            lambda: state.faults,
            lambda: state.faults.record(before.step, info, skipped=~kept),
        )
        consecutive = jnp.where(kept, 0, state.consecutive + 1)
        model, opt_state = tree_where(
            kept,
            (proposed.model, proposed.opt_state),
            (before.model, before.opt_state),
        )
        after = replace(
            proposed,
            model=model,
            opt_state=opt_state,
            recovery_state=_SkipState(consecutive, faults),
        )
        lost = consecutive > self.max_attempts
        result = RESULTS.where(lost, RESULTS.attempts_exhausted, info.result)
        return after, replace(info, result=result)

    def anchor(self, start, end):
        del start
        return end
