from itertools import pairwise

from ..._problem.extra_terms import (
    AbstractRowTerm,
    AtScale,
    Inconsistency,
    restrictions,
)
from ..._problem.supervised import RowLoss
from ...core.training.physics_configs import MultiScaleConfig


def multiscale_terms(
    config: MultiScaleConfig, loss: RowLoss
) -> tuple[dict[str, AbstractRowTerm], dict[str, float | int]]:
    """The loss at each scale, and what couples neighbours, with their weights."""
    restrict = restrictions(config.scales, dict(config.operators))
    terms: dict[str, AbstractRowTerm] = {
        f"scale/{name}": AtScale(loss, restrict[name]) for name in config.scales
    }
    weights = {f"scale/{name}": config.weights[name] for name in config.scales}
    if config.coupling:
        for coarse, fine in pairwise(config.scales):
            name = f"coupling/{coarse}-{fine}"
            terms[name] = Inconsistency(restrict[coarse], restrict[fine])
    return terms, weights
