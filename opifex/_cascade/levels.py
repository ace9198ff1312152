import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from .._callback.base import AbstractCallback, Watch
from .._custom_types import Key
from .._fit import fit
from .._misc import check_count
from .._recipe import Recipe
from .._results import RESULTS
from .._state import TrainingState
from .._transfer._kinds import Rule
from .._transfer.base import AbstractTransfer, arrays_of, make_plan
from .._validation import Validation
from .resize import prolongate, restrict
from .saved import begin, resume, savers


class Level(eqx.Module):
    """One level of a [`cascade`][]: a size of the model, and how it is trained.

    **Arguments:**

    - `recipe`: all choices; the grid or the points are in its problem and sampler.
    - `model`: a model of this size. Only that of the first level is trained as it is;
        of the others only the shapes matter.
    - `num_chunks`: how many chunks of the recipe to run, at the most.
    - `validation`: judges the model at this level; with its `patience`, the level ends
        when it no longer improves, and hands on the best state.
    """

    recipe: Recipe
    model: Any
    num_chunks: int = eqx.field(static=True)
    validation: Validation | None = None

    def __check_init__(self):
        check_count("num_chunks", self.num_chunks, least=0)


def cascade(
    levels: Sequence[Level],
    transfer: AbstractTransfer,
    *,
    key: Key,
    callbacks: Sequence[AbstractCallback] = (),
    directory: str | os.PathLike | None = None,
    every: int = 1,
    rules: Sequence[Rule] = (),
    throw: bool = True,
) -> TrainingState:
    """Trains one level after another, and carries the whole state from each to the
    next: to a larger model by [`prolongate`][], to a smaller one by [`restrict`][].

    The points of a sampler and the weights of a weighting are carried if the next level
    makes the same choice; otherwise they begin anew. What is best so far is forgotten
    between levels, since they may be judged by different numbers.

    **Arguments:**

    - `levels`: from the first to the last. The optimizers must be of one kind.
    - `transfer`: between each level and the next.
    - `key`: a typed key. All randomness derives from it.
    - `callbacks`: opened once and closed once, over all levels.
    - `directory`: where checkpoints are written, a folder a level. If there are any,
        the run goes on from the latest, bit for bit as if it had not been interrupted.
    - `every`: how many chunks lie between two of them.
    - `rules`: as in [`prolongate`][].
    - `throw`: as in [`fit`][].

    **Returns:** the state after the last level, or after that in which the run was
    stopped: by a signal, by a callback, or by a failure.

    **Raises:** what [`fit`][] raises; `ValueError`, before the first step, if two
    levels do not fit each other.
    """
    _check_levels(levels, transfer)
    place, state, start = _start(levels, directory, key)
    left = [level.num_chunks for level in levels[place:]]
    left[0] = max(left[0] - (int(np.max(state.progress.epoch)) - start), 0)
    if _has_plateaued(levels[place], state):
        left[0] = 0
    watch = Watch(callbacks, state, sum(left))
    try:
        for i, num_chunks in enumerate(left, start=place):
            if i > place:
                state = _next(levels[i - 1], levels[i], transfer, state, rules)
                begin(directory, i, state)
            state = fit(
                levels[i].recipe,
                state,
                num_chunks=num_chunks,
                callbacks=[_Forward(watch), *savers(directory, i, every)],
                validation=levels[i].validation,
                throw=throw,
            )
            if _is_stopped(state):
                break
    finally:
        failure = watch.close(state)
    if failure is not None:
        raise failure
    return state


class _Forward(AbstractCallback[None]):
    """Passes chunks on to callbacks that stay open from one `fit` to the next."""

    watch: Watch = eqx.field(static=True)

    def init(self, state, num_chunks):
        del state, num_chunks

    def on_chunk(self, memory, state, infos):
        return memory, self.watch.on_chunk(state, infos)

    def close(self, memory, state):
        del memory, state


def _start(
    levels: Sequence[Level], directory: str | os.PathLike | None, key: Key
) -> tuple[int, TrainingState, int]:
    """The level to begin with, the state to begin from, and the epoch at which this
    level began."""
    fresh = lambda i: levels[i].recipe.init(levels[i].model, key=key)
    if directory is not None:
        for i in reversed(range(len(levels))):
            found = resume(directory, i, fresh(i))
            if found is not None:
                return i, *found
    state = fresh(0)
    begin(directory, 0, state)
    return 0, state, 0


def _check_levels(levels: Sequence[Level], transfer: AbstractTransfer) -> None:
    if not levels:
        raise ValueError("`levels` is empty; give at least one.")
    for i, (one, other) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        grows = _size(one.model) <= _size(other.model)
        pair = (one.model, other.model) if grows else (other.model, one.model)
        try:
            make_plan(transfer, *pair)
        except ValueError as error:
            raise ValueError(f"`levels[{i}]` and `levels[{i + 1}]`: {error}") from None


def _size(model: PyTree) -> int:
    return sum(int(np.prod(x.shape, dtype=int)) for x in arrays_of(model).values())


def _next(
    before: Level,
    level: Level,
    transfer: AbstractTransfer,
    state: TrainingState,
    rules: Sequence[Rule],
) -> TrainingState:
    """The state with which a level begins."""
    recipe = level.recipe
    grows = _size(before.model) <= _size(level.model)
    state = (prolongate if grows else restrict)(
        transfer,
        recipe.optim,
        recipe.recovery,
        state,
        level.model,
        trainable=recipe.trainable,
        rules=rules,
    )
    return _with_choices(before.recipe, recipe, state)


def _with_choices(before: Recipe, recipe: Recipe, state: TrainingState):
    """`state`, with what another sampler, weighting or recovery begins with, and with
    nothing remembered of how the level before was judged."""
    fresh = recipe.init(state.model, key=state.key_for("init"))
    progress = replace(
        state.progress,
        best_loss=fresh.progress.best_loss,
        best_val_loss=fresh.progress.best_val_loss,
        plateau_count=fresh.progress.plateau_count,
        result=RESULTS.successful,
    )
    pick = lambda same, name: getattr(state if same else fresh, name)
    kept = _same_shapes(state.clip_norm, fresh.clip_norm)
    return replace(
        state,
        sampler_state=pick(_equal(before.sampler, recipe.sampler), "sampler_state"),
        weighting_state=pick(
            _equal(before.weighting, recipe.weighting)
            and _same_shapes(state.weighting_state, fresh.weighting_state),
            "weighting_state",
        ),
        clip_norm=pick(kept, "clip_norm"),
        progress=progress,
    )


def _equal(one: PyTree, other: PyTree) -> bool:
    return bool(eqx.tree_equal(one, other))


def _same_shapes(one: PyTree, other: PyTree) -> bool:
    shapes = lambda tree: {k: (x.shape, x.dtype) for k, x in arrays_of(tree).items()}
    return shapes(one) == shapes(other)


def _has_plateaued(level: Level, state: TrainingState) -> bool:
    if level.validation is None:
        return False
    return bool(np.all(state.progress.plateau_count >= level.validation.patience))


def _is_stopped(state: TrainingState) -> bool:
    result = state.progress.result
    goes_on = (result == RESULTS.successful) | (result == RESULTS.plateaued)
    return not bool(np.all(goes_on))
