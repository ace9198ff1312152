"""From the documented configuration to a recipe."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._problem.base import AbstractProblem
from .._problem.composed import Composed
from .._problem.extra_terms import AbstractRowTerm
from .._problem.forces import OfEnergies
from .._problem.physics_informed import PhysicsInformed
from .._problem.supervised import Pairs
from .._recipe import Recipe
from .._sampler.minibatch import Minibatch
from .._validation import training_loss, Validation
from ..core.training.config import TrainingConfig
from ..core.training.physics_configs import METRICS
from .batches import Batches
from .chunk import Epochs, Measure, measured_loss
from .functionals import FitRows
from .given import Given, Sets
from .measures import ERRORS, HeldOutLoss, Metrics, Residual
from .models import noiseless, predict, predict_forces
from .problems import make_physics, make_problem, make_weighting
from .terms.conservation import conservation_drifts
from .terms.quantum import quantum_metrics


# Chunks are that long at most, so that an interrupt is soon heard; and there are that
# many of them, because recovery goes back to where a chunk began.
_MAX_STEPS, _MIN_CHUNKS = 1600, 20


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
    problem = make_problem(given, sets, model)
    sampler, sizes = _sampler(config, sets, problem)
    measures = _measures(given, sets, problem, model)
    epochs = _epochs_per_chunk(given, sets, len(sizes), measures)
    recipe = Recipe(
        problem,
        make_optimizer(config.num_epochs * len(sizes)),
        sampler,
        given.recovery,
        make_weighting(given, len(sizes)),
        steps=epochs * len(sizes),
    )
    last = jnp.asarray(config.num_epochs, jnp.int32)
    chunk = Epochs(recipe, epochs, last, measures)
    names = [n for m, _ in measures for n in eqx.filter_eval_shape(m, model)]
    validation = _validation(given, sets, epochs)
    return Plan(chunk, validation, sizes, tuple(names))


def _sampler(
    config: TrainingConfig, sets: Sets, problem: AbstractProblem
) -> tuple[Batches, np.ndarray]:
    """The batches, and how many rows count in each step of an epoch."""
    inputs, targets = sets.train
    interior = isinstance(problem, PhysicsInformed) or (
        isinstance(problem, Composed) and problem.physics is not None
    )
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
        see, pairs = predict, sets.judged.pairs
        if given.forces:
            see = predict_forces
            errors = {name: OfEnergies(error) for name, error in errors.items()}
        if isinstance(problem, FitRows):  # densities are not what it answers
            pairs = Pairs(pairs.inputs, pairs.targets[:, :1])
        found.append((Metrics(pairs, errors, rows, see), every))
    if "physics_residual" in wanted:
        if given.physics is None or given.physics.problem.equation is None:
            raise ValueError(
                "`metrics_tracking_config` asks for 'physics_residual', and there is "
                "no equation. Call `set_physics_loss`, or leave it out."
            )
        unweighted = replace(make_physics(given, model), weights={}, conditions=None)
        found.append((Residual(unweighted, sets.judged.inputs), every))
    return tuple(found)


def _held_out(sets: Sets, problem: AbstractProblem) -> Measure:
    """The loss of the validation data, without noise."""
    assert sets.val is not None
    inputs, targets = sets.val
    if isinstance(problem, FitRows):
        return HeldOutLoss(problem, {"data": sets.val.pairs})
    if isinstance(problem, Composed) and problem.physics is None:
        judge = replace(problem.quiet, conditions=None)
        return HeldOutLoss(judge, {"data": sets.val.pairs})
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
