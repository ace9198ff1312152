"""From the documented configuration to what is trained on."""

from dataclasses import replace
from typing import Any

from .._problem.at_points import as_type, AtPoints
from .._problem.base import AbstractProblem
from .._problem.composed import Composed
from .._problem.extra_terms import AbstractRowTerm
from .._problem.forces import OfEnergies, WithForces
from .._problem.physics_informed import PhysicsInformed
from .._weighting.base import AbstractWeighting
from .._weighting.static import Static
from .functionals import FitRows
from .given import Given, Sets
from .models import (
    apply_of,
    is_per_point,
    predict,
    predict_forces,
    real_dtype,
    SelfConsistent,
)
from .terms.conservation import conservation_terms, multipliers
from .terms.multiscale import multiscale_terms
from .terms.quantum import force_terms


_PHYSICS = {
    "physics_weight": "interior",
    "boundary_weight": "boundary",
    "initial_weight": "initial",
    "data_weight": "data",
}


def make_problem(given: Given, sets: Sets, model: Any) -> AbstractProblem:
    """What is trained on: data, known values, an equation, further terms."""
    if isinstance(model, SelfConsistent):
        return _functional_problem(given, sets, model)
    config, has_targets = given.config, sets.train.targets is not None
    rows, weights = _rows(given)
    if rows and not has_targets:
        raise ValueError(
            f"The terms {sorted(rows)} compare with targets, but `train_data[1]` is "
            "`None`. Give targets, or leave `conservation_config` and "
            "`multiscale_config` out."
        )
    lawful = tuple(name for name in rows if name.startswith("conservation/"))
    lawful = lawful if given.multiplies else ()
    if given.physics is None:
        return Composed(
            loss=OfEnergies(given.row_loss) if given.forces else given.row_loss,
            apply=WithForces(apply_of(model)) if given.forces else apply_of(model),
            predict=predict_forces if given.forces else predict,
            rows=rows,
            custom=given.custom,
            weights=weights | _weights_of_parts(given),
            conditions=_in_type_of(model, given.conditions),
            multiplied=lawful,
        )
    physics = make_physics(given, model)
    if config.loss.loss_type != "mse":
        raise ValueError(
            f"`loss_config.loss_type` = {config.loss.loss_type!r} contradicts the "
            "physics loss, which measures misfits by their mean square. Leave it out."
        )
    if physics.equation is None and not physics.constraints:
        if not has_targets and not sets.known and physics.conditions is None:
            raise ValueError(
                "The physics loss has no equation, and `train_data[1]` is `None`: "
                "there is nothing to train on. Give `pde_residual`, or targets."
            )
    if not rows and not given.custom:
        return physics
    return Composed(
        apply=apply_of(model),
        predict=predict,
        physics=physics,
        rows=rows,
        custom=given.custom,
        weights=weights,
        multiplied=lawful,
    )


def _functional_problem(given: Given, sets: Sets, model: SelfConsistent) -> FitRows:
    others = {
        "`set_physics_loss` has": given.physics,
        "`register_custom_loss` has": given.custom,
        "`boundary_data` and `initial_data` have": sets.known,
    }
    for name, value in others.items():
        if value:
            raise ValueError(
                f"{name} no meaning for a density functional, which is trained on "
                "energies and densities. Leave them out."
            )
    return FitRows(model.problem)


def make_weighting(given: Given, steps_per_epoch: int) -> AbstractWeighting:
    """How the terms are weighted during training."""
    found = Static() if given.physics is None else given.physics.weighting
    if not given.multiplies:
        return found
    if not isinstance(found, Static):
        raise ValueError(
            "`conservation_config.enforcement` = 'augmented_lagrangian' contradicts "
            "the adaptive weighting of the physics loss: both set the weights. Use "
            "'penalty', or `adaptive_weighting=False`."
        )
    assert given.config.conservation_config is not None
    return multipliers(given.config.conservation_config, steps_per_epoch)


def _rows(given: Given) -> tuple[dict[str, AbstractRowTerm], dict[str, float | int]]:
    config = given.config
    terms, weights = force_terms(config.quantum_config, given.row_loss)
    others = ("conservation_config", "multiscale_config")
    for name in (name for name in others if getattr(config, name) is not None):
        if given.forces:
            raise ValueError(
                f"`{name}` contradicts `quantum_config.force_weight`: energies and "
                "forces are no fields. Leave one of the two out."
            )
    if given.forces and given.physics is not None:
        raise ValueError(
            "`quantum_config.force_weight` contradicts the physics loss, which knows "
            "no forces. Leave one of the two out."
        )
    if config.conservation_config is not None:
        more, heavy = conservation_terms(config.conservation_config)
        terms, weights = terms | more, weights | heavy
    if config.multiscale_config is not None:
        more, heavy = multiscale_terms(config.multiscale_config, given.row_loss)
        terms, weights = terms | more, weights | heavy
    return terms, weights


def _weights_of_parts(given: Given) -> dict[str, float | int]:
    loss = given.config.loss
    if loss.physics_weight is not None:
        raise ValueError(
            f"`loss_config.physics_weight` = {loss.physics_weight!r} has nothing to "
            "weight. Call `set_physics_loss`, or leave it out."
        )
    found = {part: getattr(loss, name) for name, part in _PHYSICS.items()}
    return {part: w for part, w in found.items() if w is not None}


def make_physics(given: Given, model: Any) -> PhysicsInformed:
    """The problem of the physics loss, with the weights of `loss_config`."""
    assert given.physics is not None
    problem, weights = given.physics.problem, dict(given.physics.problem.weights)
    for name, part in _PHYSICS.items():
        own = getattr(given.config.loss, name)
        if own is None:
            continue
        if weights.get(part, 1.0) not in (1.0, own):
            raise ValueError(
                f"`loss_config.{name}` = {own!r} contradicts that of the physics loss, "
                f"{weights[part]!r}. Say it in one of the two."
            )
        weights[part] = own
    conditions = problem.conditions
    if given.conditions is not None:
        if conditions is not None:
            raise ValueError(
                "`boundary_config.conditions` and the conditions of the physics loss "
                "say the same thing twice. Give one of the two."
            )
        conditions = given.conditions
    return replace(
        problem,
        batched=not is_per_point(model),
        weights=weights,
        conditions=_in_type_of(model, conditions),
    )


def _in_type_of(model: Any, conditions: AtPoints | None) -> AtPoints | None:
    return None if conditions is None else as_type(conditions, real_dtype(model))
