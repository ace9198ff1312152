from ..._problem.extra_terms import (
    AbstractRowTerm,
    Asymmetry,
    Beyond,
    Drift,
    INTEGRALS,
)
from ...core.training.physics_configs import ConservationConfig


def conservation_terms(
    config: ConservationConfig,
) -> tuple[dict[str, AbstractRowTerm], dict[str, float | int]]:
    """The penalty of each law, by the name of its term, and its weight."""
    if config.enforcement != "penalty":
        raise NotImplementedError(
            f"`enforcement` = {config.enforcement!r} is not there yet for the "
            "documented trainers. Use 'penalty', or the weighting "
            "`opifex.AugmentedLagrangian` with `opifex.Recipe`."
        )
    terms: dict[str, AbstractRowTerm] = {
        f"conservation/{law}": Beyond(_measured(config, law), config.tolerance(law))
        for law in config.laws
    }
    return terms, dict.fromkeys(terms, config.weight)


def conservation_drifts(config: ConservationConfig) -> dict[str, AbstractRowTerm]:
    """How far each law is from being met, without weight and tolerance."""
    return {f"drift/{law}": _measured(config, law) for law in config.laws}


def _measured(config: ConservationConfig, law: str) -> Drift | Asymmetry:
    if law in config.quantities:
        return Drift(quantity=config.quantities[law])
    if law == "symmetry":
        return Asymmetry(config.symmetry_of_points, config.symmetry_of_fields)
    weights = config.quadrature_weights
    return Drift(INTEGRALS[law], weights=None if weights is None else tuple(weights))
