from dataclasses import replace

from .._results import RESULTS
from .base import AbstractRecovery


class NoRecovery(AbstractRecovery[None]):
    """Takes every step, whatever it is. A NaN is reported, and is the end."""

    def init(self, model, opt_state, num_leaves):
        del model, opt_state, num_leaves

    @property
    def first_clip_norm(self):
        return None

    def decide(self, before, proposed, info):
        del before
        kept = info.result == RESULTS.successful
        result = RESULTS.where(kept, info.result, RESULTS.diverged)
        return proposed, replace(info, result=result)

    def anchor(self, start, end):
        del start
        return end
