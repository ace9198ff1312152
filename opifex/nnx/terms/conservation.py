from ..._problem.composed import excess_of
from ..._problem.extra_terms import (
    AbstractRowTerm,
    Asymmetry,
    Beyond,
    Drift,
    INTEGRALS,
)
from ..._weighting.multipliers import Multipliers
from ...core.training.physics_configs import ConservationConfig


def conservation_terms(
    config: ConservationConfig,
) -> tuple[dict[str, AbstractRowTerm], dict[str, float | int]]:
    """The penalty of each law, by the name of its term, and its weight."""
    terms: dict[str, AbstractRowTerm] = {
        f"conservation/{law}": Beyond(_measured(config, law), config.tolerance(law))
        for law in config.laws
    }
    # With multipliers the weight grows, so it is theirs.
    return terms, {} if config.multiplies else dict.fromkeys(terms, config.weight)


def multipliers(config: ConservationConfig, steps_per_epoch: int) -> Multipliers:
    """What makes the laws constraints."""
    every, growth, most = config.multiplier_settings
    names = [f"conservation/{law}" for law in config.laws]
    return Multipliers(
        tuple((name, excess_of(name)) for name in names),
        mu=config.weight,
        beta=growth,
        max_mu=most,
        every=every * steps_per_epoch,
    )


def conservation_drifts(config: ConservationConfig) -> dict[str, AbstractRowTerm]:
    """How far each law is from being met, without weight and tolerance."""
    return {f"drift/{law}": _measured(config, law) for law in config.laws}


def _measured(config: ConservationConfig, law: str) -> Drift | Asymmetry:
    of_input = config.reference == "input"
    if law in config.quantities:
        return Drift(quantity=config.quantities[law], of_input=of_input)
    if law == "symmetry":
        return Asymmetry(config.symmetry_of_points, config.symmetry_of_fields)
    weights = config.quadrature_weights
    weights = None if weights is None else tuple(weights)
    return Drift(INTEGRALS[law], weights=weights, of_input=of_input)
