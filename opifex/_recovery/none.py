from dataclasses import replace

import equinox as eqx

from .._results import RESULTS
from .base import AbstractRecovery


class NoRecovery(AbstractRecovery[None]):
    """Takes every step, whatever it is. A NaN is reported, and is the end."""

    clips: bool = eqx.field(static=True, default=False, init=False)

    def init(self, model, opt_state, num_leaves):
        del model, opt_state, num_leaves

    def decide(self, before, proposed, info):
        del before
        kept = info.result == RESULTS.successful
        result = RESULTS.where(kept, info.result, RESULTS.diverged)
        return proposed, replace(info, result=result)

    def anchor(self, start, end):
        del start
        return end
