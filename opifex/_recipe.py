from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ._custom_types import Key, Model
from ._misc import check_count
from ._objective import term_shapes
from ._optimizer.base import check_optimizer
from ._precision import Precision
from ._problem.base import AbstractProblem
from ._recovery.backtrack import Backtrack
from ._recovery.base import AbstractRecovery, anchor, recover
from ._sampler.base import AbstractSampler, resample
from ._sampler.data_parallel import DataParallel
from ._sampler.fixed import Fixed
from ._sampler.quasi_random import QuasiRandom
from ._scan import filter_scan
from ._state import StepInfo, TrainingState
from ._step import check_key, init, train_step, trainable
from ._stochastic import warn_if_changing
from ._weighting.base import AbstractWeighting, check_needs, Needs
from ._weighting.static import Static


class Recipe(eqx.Module):
    """All choices, no state. Calling it runs one chunk of `steps` steps.

    **Arguments:** those of [`train_step`][], and

    - `sampler`: hands out the batches.
    - `recovery`: decides about each step.
    - `steps`: how many make up a chunk.
    """

    problem: AbstractProblem
    optim: optax.GradientTransformation
    sampler: AbstractSampler
    recovery: AbstractRecovery = Backtrack()
    weighting: AbstractWeighting = Static()
    precision: Precision = Precision()
    trainable: Callable[[Any], PyTree[bool]] = trainable
    accumulate: int = eqx.field(static=True, default=1)
    remat: bool = eqx.field(static=True, default=False)
    steps: int = eqx.field(static=True, default=100)

    def __check_init__(self):
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise TypeError(
                    f"`{name}` must be an instance of `{kind.__name__}`, got {value!r} "
                    f"of type {type(value).__name__}."
                )
        check_optimizer("optim", self.optim)
        check_count("accumulate", self.accumulate)
        check_count("steps", self.steps)
        check_needs(self.weighting, self.problem)
        _check_points(self.weighting, self.sampler)

    def init(self, model: Model, *, key: Key) -> TrainingState[Model]:
        """The state before the first step. See [`init`][].

        Warns if the optimizer compares one step with the next, as a line search does,
        but the loss is another one at every step.
        """
        check_key(key)
        state = init(
            self.optim,
            self.sampler,
            self.recovery,
            model,
            weighting=self.weighting,
            terms=self._term_shapes(model, key),
            trainable=self.trainable,
            key=key,
        )
        warn_if_changing(self.problem, self.sampler, state)
        return state

    def step(self, state: TrainingState) -> tuple[TrainingState, StepInfo]:
        """One step: sample, propose, dispose."""
        batch = self.sampler.batch(
            state.sampler_state, state.key_for("batch"), state.step
        )
        proposed, info = train_step(
            self.problem,
            self.optim,
            state,
            batch,
            weighting=self.weighting,
            trainable=self.trainable,
            precision=self.precision,
            accumulate=self.accumulate,
            remat=self.remat,
        )
        return recover(self.recovery, state, proposed, info)

    def __call__(self, start: TrainingState) -> tuple[TrainingState, StepInfo]:
        state, infos = filter_scan(self.step, start, length=self.steps)
        state = anchor(self.recovery, start, state)
        return resample(self.sampler, self.problem, state), infos

    def _term_shapes(self, model, key) -> dict[str, jax.ShapeDtypeStruct]:
        def terms():
            state = self.sampler.init(key)
            batch = self.sampler.batch(state, key, jnp.zeros((), jnp.int32))
            return term_shapes(self.problem, self.weighting, model, batch, key)

        return dict(sorted(eqx.filter_eval_shape(terms).items()))


def _check_points(weighting: AbstractWeighting, sampler: AbstractSampler) -> None:
    """Raises if `weighting` remembers single points and `sampler` replaces them."""
    if Needs.FIXED_POINTS not in weighting.needs:
        return
    if isinstance(sampler, DataParallel):
        return _check_points(weighting, sampler.sampler)
    still = isinstance(sampler, QuasiRandom) and not sampler.shift
    if not still and not isinstance(sampler, Fixed):
        raise ValueError(
            f"`weighting` is `{type(weighting).__name__}`, which needs "
            f"{Needs.FIXED_POINTS.value}, but `sampler` is "
            f"`{type(sampler).__name__}`. Use `Fixed(points)`, or a weighting that "
            "keeps nothing for single points."
        )


_KINDS = {
    "problem": AbstractProblem,
    "sampler": AbstractSampler,
    "recovery": AbstractRecovery,
    "weighting": AbstractWeighting,
    "precision": Precision,
}
