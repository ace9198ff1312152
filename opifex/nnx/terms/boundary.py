import equinox as eqx

from ..._custom_types import Key
from ..._problem.at_points import at_points, AtPoints, setting_of
from ..._problem.exact import Ansatz, make_ansatz
from ...core.training.physics_configs import BoundaryConfig


def soft_conditions(config: BoundaryConfig | None, key: Key) -> AtPoints | None:
    """Those that are terms of the loss, with their points."""
    if config is None or config.domain is None:
        return None
    given = config.enforced
    setting = setting_of(config.domain, given, fields=tuple(config.fields))
    made = at_points(setting, given, num_points=config.num_points, key=key)
    return made if made.conditions else None


def exact_conditions(config: BoundaryConfig | None) -> Ansatz | None:
    """The formula around the model that meets those that are exact."""
    given = () if config is None else config.enforced
    if config is None or not any(c.exact for c in given):
        return None
    assert config.domain is not None
    setting = setting_of(config.domain, given, fields=tuple(config.fields))
    ansatz = make_ansatz(setting, given, 1, scaled=False)
    network = lambda x: x[:1].repeat(len(config.fields))
    try:
        eqx.filter_eval_shape(ansatz, network, config.domain.lower)
    except ValueError as error:
        raise ValueError(
            "`boundary_config` has exact conditions, which this geometry does not "
            f"allow: {error} Give a `weight` in place of `enforce`."
        ) from error
    return ansatz
