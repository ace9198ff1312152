"""From the documented configuration to a recipe."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._problem.at_points import AtPoints
from .._problem.base import AbstractProblem
from .._problem.composed import Composed
from .._problem.extra_terms import AbstractRowTerm
from .._problem.forces import OfEnergies, WithForces
from .._problem.physics_informed import PhysicsInformed
from .._problem.supervised import RowLoss
from .._recipe import Recipe
from .._recovery.base import AbstractRecovery
from .._sampler.minibatch import Minibatch
from .._validation import training_loss, Validation
from .._weighting.base import AbstractWeighting
from .._weighting.static import Static
from ..core.physics.losses import PhysicsInformedLoss
from ..core.training.config import TrainingConfig
from ..core.training.physics_configs import METRICS
from .batches import Batches
from .chunk import Epochs, Measure, measured_loss
from .data import Data
from .measures import ERRORS, HeldOutLoss, Metrics, Residual
from .models import (
    apply_of,
    is_per_point,
    noiseless,
    predict,
    predict_forces,
    real_dtype,
)
from .terms.conservation import (
    conservation_drifts,
    conservation_terms,
    multipliers,
)
from .terms.multiscale import multiscale_terms
from .terms.quantum import force_terms, has_forces, quantum_metrics


# Chunks are that long at most, so that an interrupt is soon heard; and there are that
# many of them, because recovery goes back to where a chunk began.
_MAX_STEPS, _MIN_CHUNKS = 1600, 20

_PHYSICS = {
    "physics_weight": "interior",
    "boundary_weight": "boundary",
    "initial_weight": "initial",
    "data_weight": "data",
}


@dataclass(frozen=True)
class Given:
    """All that a trainer was told, apart from the data."""

    config: TrainingConfig
    row_loss: RowLoss
    physics: PhysicsInformedLoss | None
    custom: dict[str, Callable]
    recovery: AbstractRecovery
    listens: bool  # whether somebody wants to be called after every epoch
    conditions: AtPoints | None = None  # on a boundary, those that are not exact

    @property
    def forces(self) -> bool:
        """Whether targets are pairs of energies and forces."""
        return has_forces(self.config.quantum_config)

    @property
    def multiplies(self) -> bool:
        """Whether conservation laws have multipliers."""
        conserved = self.config.conservation_config
        return conserved is not None and conserved.multiplies


@dataclass(frozen=True)
class Sets:
    """All the data of a run."""

    train: Data
    val: Data | None
    known: dict[str, Data]

    @property
    def judged(self) -> Data:
        """The data on which metrics are measured."""
        return self.train if self.val is None else self.val


@dataclass(frozen=True)
class Plan:
    """A run, ready to begin."""

    chunk: Epochs
    validation: Validation | None
    step_weights: np.ndarray
    measured: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        return self.chunk.recipe

    @property
    def interior(self) -> bool:
        """Whether an equation holds at the inputs of the data."""
        sampler = self.recipe.sampler
        return isinstance(sampler, Batches) and sampler.interior


def make_plan(
    given: Given, sets: Sets, model: Any, make_optimizer: Callable[[int], Any]
) -> Plan:
    """The recipe and the chunk for some data.

    `make_optimizer` is handed the number of steps.
    """
    config = given.config
    check_supported(config)
    problem = make_problem(given, sets, model)
    sampler, sizes = _sampler(config, sets, problem)
    measures = _measures(given, sets, problem, model)
    epochs = _epochs_per_chunk(given, sets, len(sizes), measures)
    recipe = Recipe(
        problem,
        make_optimizer(config.num_epochs * len(sizes)),
        sampler,
        given.recovery,
        _weighting(given, len(sizes)),
        steps=epochs * len(sizes),
    )
    last = jnp.asarray(config.num_epochs, jnp.int32)
    chunk = Epochs(recipe, epochs, last, measures)
    names = [n for m, _ in measures for n in eqx.filter_eval_shape(m, model)]
    validation = _validation(given, sets, epochs)
    return Plan(chunk, validation, sizes, tuple(names))


def check_supported(config: TrainingConfig) -> None:
    """Raises for what can be said, and is not there yet."""
    for name in ("dft_config", "scf_config"):
        if getattr(config, name) is not None:
            raise NotImplementedError(
                f"`{name}` is not there yet: it comes with the Kohn-Sham solver. Leave "
                "it out."
            )


def make_problem(given: Given, sets: Sets, model: Any) -> AbstractProblem:
    """What is trained on: data, known values, an equation, further terms."""
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
    physics = _physics(given, model)
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


def _weighting(given: Given, steps_per_epoch: int) -> AbstractWeighting:
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


def _physics(given: Given, model: Any) -> PhysicsInformed:
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
    return None if conditions is None else conditions.astype(real_dtype(model))


def _sampler(
    config: TrainingConfig, sets: Sets, problem: AbstractProblem
) -> tuple[Batches, np.ndarray]:
    """The batches, and how many rows count in each step of an epoch."""
    inputs, targets = sets.train
    interior = not isinstance(problem, Composed) or problem.physics is not None
    # Batches are pairs: where there are no targets, something stands in for them.
    filler = jnp.zeros(inputs.shape[:1], inputs.dtype)
    shown = filler if targets is None else targets
    rows = Minibatch(inputs, shown, config.batch_size)
    known = {name: data.pairs for name, data in sets.known.items()}
    sampler = Batches(rows, known, interior, targets is not None)
    sizes = np.full(rows.steps_per_epoch, rows.batch_size, float)
    left = rows.num_rows % rows.batch_size
    if left and not interior:
        sizes[-1] = left
    return sampler, sizes


def _measures(
    given: Given, sets: Sets, problem: AbstractProblem, model: Any
) -> tuple[tuple[Measure, int], ...]:
    """What is measured at the end of epochs, and how often."""
    config, found = given.config, []
    tracking = config.metrics_tracking_config
    often = config.validation_frequency
    if sets.val is not None:
        found.append((_held_out(sets, problem), often))
    wanted = set() if tracking is None else set(tracking.metrics)
    rows: dict[str, AbstractRowTerm] = {}
    if config.conservation_config is not None:
        rows |= conservation_drifts(config.conservation_config)
    if config.quantum_config is not None:
        rows |= quantum_metrics(config.quantum_config)
    every = often if tracking is None else tracking.frequency
    # In the order of the configuration's own list, so that equal ones compile once.
    errors = {name: ERRORS[name] for name in METRICS if name in wanted & set(ERRORS)}
    if rows or errors:
        if sets.judged.targets is None:
            raise ValueError(
                f"The metrics {sorted([*errors, *rows])} compare with targets, and "
                "there are none. Give `val_data` with targets."
            )
        see = predict
        if given.forces:
            see = predict_forces
            errors = {name: OfEnergies(error) for name, error in errors.items()}
        found.append((Metrics(sets.judged.pairs, errors, rows, see), every))
    if "physics_residual" in wanted:
        if given.physics is None or given.physics.problem.equation is None:
            raise ValueError(
                "`metrics_tracking_config` asks for 'physics_residual', and there is "
                "no equation. Call `set_physics_loss`, or leave it out."
            )
        unweighted = replace(_physics(given, model), weights={}, conditions=None)
        found.append((Residual(unweighted, sets.judged.inputs), every))
    return tuple(found)


def _held_out(sets: Sets, problem: AbstractProblem) -> Measure:
    """The loss of the validation data, without noise."""
    assert sets.val is not None
    inputs, targets = sets.val
    if isinstance(problem, Composed) and problem.physics is None:
        return HeldOutLoss(problem.quiet, {"data": sets.val.pairs})
    physics = problem.physics if isinstance(problem, Composed) else problem
    if targets is None:
        return HeldOutLoss(physics, {"interior": inputs})  # type: ignore[arg-type]
    # With values to compare with, it is they that count, and not the equation.
    return HeldOutLoss(Composed(apply=noiseless), {"data": sets.val.pairs})


def _epochs_per_chunk(
    given: Given, sets: Sets, steps_per_epoch: int, measures: tuple
) -> int:
    """As many epochs as nothing on the host has to happen in."""
    config = given.config
    if given.listens:
        return 1
    whole = config.num_epochs
    spans = [whole, *(every for _, every in measures)]
    if sets.val is None and config.early_stopping:
        spans.append(config.validation_frequency)
    if config.checkpoint_dir is not None:
        spans.append(config.checkpoint_frequency)
    span = math.gcd(*(every for every in spans if every <= whole))
    most = max(min(_MAX_STEPS // steps_per_epoch, whole // _MIN_CHUNKS), 1)
    return max(d for d in range(1, min(span, most) + 1) if span % d == 0)


def _validation(given: Given, sets: Sets, epochs: int) -> Validation | None:
    """By which number the run is judged.

    It is looked at after every chunk, and is NaN after those that did not measure it;
    so the patience, which counts validations, has to be told in chunks.
    """
    config = given.config
    if sets.val is None and not config.early_stopping:
        return None
    if sets.val is None and given.multiplies:
        raise ValueError(
            "`early_stopping` needs `val_data` beside `enforcement` = "
            "'augmented_lagrangian': with multipliers in it the training loss is no "
            "measure."
        )
    patience = math.inf
    if config.early_stopping:
        patience = config.patience * max(config.validation_frequency // epochs, 1)
    judge = training_loss if sets.val is None else measured_loss
    return Validation(judge, patience=patience, min_delta=config.min_delta)
