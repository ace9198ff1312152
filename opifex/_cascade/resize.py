"""A whole training state, carried between two sizes of a model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import optax
from jaxtyping import PyTree

from .._custom_types import Model
from .._optimizer.base import check_optimizer
from .._optimizer.searches import holds_line_search
from .._recovery.base import AbstractRecovery, Faults
from .._state import TrainingState
from .._step import trainable
from .._transfer._carry import prolongate_opt_state, restrict_opt_state
from .._transfer._kinds import Rule
from .._transfer.base import (
    AbstractTransfer,
    make_plan,
    prolongate_model,
    restrict_model,
)


def prolongate(
    transfer: AbstractTransfer,
    optim: optax.GradientTransformation,
    recovery: AbstractRecovery,
    state: TrainingState[Model],
    model: Model,
    *,
    trainable: Callable[[Any], PyTree[bool]] = trainable,
    step_ratio: int | float | None = None,
    rules: Sequence[Rule] = (),
) -> TrainingState[Model]:
    """Goes on with a larger model, as if all that was learned had been learned with it.

    The function is unchanged to rounding. The state of the optimizer becomes what the
    gradients of the larger model would have made of it, by rules for each array: which
    axis of which parameter its axes are, and of which degree in the gradient it is. The
    recovery takes the new model for its ground, and begins anew but for its record of
    faults. The sampler, the weights, the key and the counts of steps are carried.

    **Arguments:**

    - `transfer`: how the model grows.
    - `optim`, `recovery`: those of `state`.
    - `state`: of the coarse model.
    - `model`: of the size that is wanted. Only its shapes matter.
    - `trainable`: as in [`init`][].
    - `step_ratio`: by which `state.step_scale` is multiplied. By default that of the
        transfer; one if the optimizer searches along a line.
    - `rules`: for arrays of the optimizer's state of which the library does not know
        what they are. Pairs of a regular expression for the path (or a function of path
        and array) and a kind: `"keep"`, `"value"`, `"copy"`, `"gradient"`, `"square"`,
        `"inverse"` or `"basis"`.

    **Raises:** `ValueError` if the models do not fit each other, or if for an array in
    the state of the optimizer there is no rule; it is named.
    """
    check_optimizer("optim", optim)
    new = prolongate_model(transfer, state.model, model)
    plan = make_plan(transfer, state.model, model)
    params = _params(trainable, state.model, new)
    opt_state = prolongate_opt_state(optim, plan, params, state.opt_state, rules)
    ratio = _ratio(step_ratio, transfer, opt_state, state.model, new)
    return _renewed(state, new, opt_state, recovery, ratio)


def restrict(
    transfer: AbstractTransfer,
    optim: optax.GradientTransformation,
    recovery: AbstractRecovery,
    state: TrainingState[Model],
    model: Model,
    *,
    trainable: Callable[[Any], PyTree[bool]] = trainable,
    step_ratio: int | float | None = None,
    rules: Sequence[Rule] = (),
) -> TrainingState[Model]:
    """Goes on with a smaller model: the inverse of [`prolongate`][], and otherwise an
    average, each unit the mean of its copies.

    **Arguments:** those of [`prolongate`][]; `model` is of the smaller size, and
    `state.step_scale` is divided by `step_ratio`.
    """
    check_optimizer("optim", optim)
    new = restrict_model(transfer, state.model, model)
    plan = make_plan(transfer, model, state.model)
    params = _params(trainable, new, state.model)
    opt_state = restrict_opt_state(optim, plan, params, state.opt_state, rules)
    ratio = _ratio(step_ratio, transfer, opt_state, new, state.model)
    return _renewed(state, new, opt_state, recovery, 1 / ratio)


def _params(trainable, *models: PyTree) -> tuple[PyTree, PyTree]:
    coarse, fine = (eqx.filter(model, trainable(model)) for model in models)
    return coarse, fine


def _ratio(given, transfer, opt_state, coarse, fine) -> float:
    if given is None:
        searches = holds_line_search(opt_state)
        return 1.0 if searches else transfer.step_ratio(coarse, fine)
    if not 0 < given < float("inf"):
        raise ValueError(
            f"`step_ratio` must be positive, got {given!r}. Leave it out for that of "
            "the transfer."
        )
    return float(given)


def _renewed(state, model, opt_state, recovery, ratio: float) -> TrainingState:
    num_leaves = len(jtu.tree_leaves(eqx.filter(model, eqx.is_inexact_array)))
    ground = recovery.init(model, opt_state, num_leaves)
    return replace(
        state,
        model=model,
        opt_state=opt_state,
        recovery_state=_with_faults(ground, state.recovery_state),
        step_scale=state.step_scale * ratio,
    )


def _with_faults(new: PyTree, old: PyTree) -> PyTree:
    """The recovery state `new`, with the record of what went wrong before."""
    is_faults = lambda x: isinstance(x, Faults)
    found = list(filter(is_faults, jtu.tree_leaves(old, is_leaf=is_faults)))
    if not found:
        return new
    pick = lambda x: found[0] if is_faults(x) else x
    return jtu.tree_map(pick, new, is_leaf=is_faults)
