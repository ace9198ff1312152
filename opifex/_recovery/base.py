import abc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Int

from .._custom_types import AnyArray, Count, Flag, Model, OptState, RecoveryState
from .._misc import array_library
from .._results import is_fatal, RESULTS
from .._state import StepInfo, TrainingState


class AbstractRecovery(eqx.Module, Generic[RecoveryState]):
    """Decides whether a proposed step is kept, and what happens if it is not.

    Everything is a `where`, for each member of an ensemble by itself; nothing raises.
    """

    @abc.abstractmethod
    def init(self, model: Model, opt_state: OptState, num_leaves: int) -> RecoveryState:
        """The counters, and whatever must be remembered in order to go back.

        `num_leaves` is the number of inexact arrays of the model.
        """

    @property
    @abc.abstractmethod
    def first_clip_norm(self) -> float | None:
        """The bound on the norm of the first gradient; `None` if it never clips.

        Clipping makes every update wait for the whole gradient, so it is compiled in
        only where it is wanted.
        """

    @abc.abstractmethod
    def decide(
        self, before: TrainingState, proposed: TrainingState, info: StepInfo
    ) -> tuple[TrainingState, StepInfo]:
        """The state to continue from, and `info` with its final `result`.

        `info` was measured at `before.model`: that is what it vouches for. Nobody has
        looked at `proposed.model` yet.
        """

    @abc.abstractmethod
    def anchor(self, start: TrainingState, end: TrainingState) -> TrainingState:
        """`end`, with `start` remembered if the chunk between them vouches for it."""


def recover(
    recovery: AbstractRecovery,
    before: TrainingState,
    proposed: TrainingState,
    info: StepInfo,
) -> tuple[TrainingState, StepInfo]:
    """Keeps the proposed step, or returns to known-good ground.

    **Arguments:**

    - `recovery`: decides.
    - `before`: the state that was handed to `train_step`.
    - `proposed`, `info`: what `train_step` made of it.

    **Returns:** the state to continue from, and `info` with its final `result`.
    """
    after, info = recovery.decide(before, proposed, info)
    progress = before.progress
    kept = info.result == RESULTS.successful
    loss = jnp.where(kept, info.loss.astype(progress.best_loss.dtype), jnp.inf)
    fatal = is_fatal(info.result)
    progress = replace(
        progress,
        best_loss=jnp.minimum(progress.best_loss, loss),
        result=RESULTS.where(fatal, info.result, progress.result),
    )
    return replace(after, progress=progress), info


def anchor(
    recovery: AbstractRecovery, start: TrainingState, end: TrainingState
) -> TrainingState:
    """Ends a chunk: remembers `start` as the ground to return to, if it proved sound.

    Once a chunk, because a snapshot carried through every step was measured to cost a
    small model a third of its time.

    **Arguments:**

    - `recovery`: the same that decided on the steps between.
    - `start`, `end`: the state before the first and after the last step of the chunk.
    """
    return recovery.anchor(start, end)


# What `Faults.counts` counts, in order.
CAUSES = (
    "nonfinite_loss",
    "nonfinite_gradient",
    "spiked",
    "exploded",
    "clipped",
    "skipped",
    "rolled_back",
    "reinitialised",
)


class Faults(eqx.Module):
    """What went wrong so far: how often, by cause, and where it first did."""

    counts: Int[Array, " causes"]
    places: Int[Array, "4"]
    """The step of the first fault, the place of the term (among the sorted names) and
    of the array (among the inexact ones of the model) in which it showed; the last step
    from which the run went back. All -1 for none.
    """

    @staticmethod
    def none() -> "Faults":
        """Nothing has happened yet."""
        return Faults(jnp.zeros(len(CAUSES), jnp.int32), jnp.full(4, -1, jnp.int32))

    def count(self, **happened: Flag) -> "Faults":
        """Adds one to each cause that happened."""
        no = jnp.array(False)
        hits = jnp.stack([happened.get(cause, no) for cause in CAUSES])
        return replace(self, counts=self.counts + hits.astype(jnp.int32))

    def went_back(self, step: Count, back: Flag) -> "Faults":
        """Notes the step from which the run went back, if it did."""
        last = jnp.where(back, step, self.places[3])
        return replace(self, places=self.places.at[3].set(last))

    def record(self, step: Count, info: StepInfo, **happened: Flag) -> "Faults":
        """Counts what `info.result` names and what happened; notes the first fault."""
        new = self.count(
            nonfinite_loss=info.result == RESULTS.nonfinite_loss,
            nonfinite_gradient=info.result == RESULTS.nonfinite_gradient,
            spiked=info.result == RESULTS.spiked,
            exploded=info.result == RESULTS.exploded,
            **happened,
        )
        terms = jnp.stack([jnp.isfinite(v) for _, v in sorted(info.terms.items())])
        here = [step, _first(~terms), _first(~jnp.isfinite(info.leaf_norms))]
        is_first = (info.result != RESULTS.successful) & (self.places[0] < 0)
        first = jnp.where(is_first, jnp.stack(here), self.places[:3])
        return replace(new, places=jnp.append(first, self.places[3]))


def _first(flags: Bool[Array, " n"]) -> Count:
    return jnp.where(jnp.any(flags), jnp.argmax(flags).astype(jnp.int32), -1)


def fault_report(state: TrainingState, terms: Sequence[str] = ()) -> dict[str, Any]:
    """What went wrong in a run so far, for a person to read.

    **Arguments:**

    - `state`: of a single run.
    - `terms`: the names of the terms of the loss, to name the first that failed.

    **Returns:** how often each cause was met, and under `"first"` the step, the term
    and the path of the array in which the first fault showed; empty if `recovery` keeps
    no such record.
    """
    faults = faults_of(state)
    if faults is None:
        return {}
    numbers = faults.counts.tolist()
    counts: dict[str, Any] = dict(zip(CAUSES, numbers, strict=True))
    step, term, leaf, _ = faults.places.tolist()
    if step < 0:
        return counts
    arrays = eqx.filter(state.model, eqx.is_inexact_array)
    paths = [jtu.keystr(path) for path, _ in jtu.tree_leaves_with_path(arrays)]
    name = sorted(terms)[term] if 0 <= term < len(terms) else None
    path = paths[leaf] if leaf >= 0 else None
    return counts | {"first": {"step": step, "term": name, "array": path}}


def went_back(state: TrainingState, infos: StepInfo) -> Bool[AnyArray, "..."]:
    """Whether the chunk before `state` went back, so that what was measured in it says
    nothing about `state`. False if the recovery keeps no record. NumPy's where `infos`
    are on the host."""
    xp, faults = array_library(infos.loss), faults_of(state)
    step, steps = xp.asarray(state.step), infos.loss.shape[-1]
    if faults is None:
        return xp.zeros(step.shape, bool)
    return xp.asarray(faults.places)[..., 3] >= xp.maximum(step - steps, 0)


def faults_of(state: TrainingState) -> Faults | None:
    """The record of its faults, if the recovery keeps one."""
    is_faults = lambda x: isinstance(x, Faults)
    found = jtu.tree_leaves(state.recovery_state, is_leaf=is_faults)
    return next((x for x in found if is_faults(x)), None)
