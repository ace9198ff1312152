"""What a run that ends early hands back."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._misc import tree_allfinite, tree_copy, tree_where
from ._state import StepInfo, TrainingState
from ._validation import training_loss, Validation


class Verdict(eqx.Module):
    """Whether the state after a chunk can be the best, computed along with it."""

    loss: Float[Array, "..."]  # as `training_loss` has it
    sound: Bool[Array, "..."]


def judge(state: TrainingState, infos: StepInfo) -> Verdict:
    """The verdict on `state`, or on each of its members."""
    allfinite = eqx.filter_vmap(tree_allfinite) if state.step.ndim else tree_allfinite
    return Verdict(training_loss(state, infos), allfinite(state.model))


class Best(NamedTuple):
    """The best state so far, of each member, and the loss that it is judged by."""

    loss: np.ndarray  # () or (members,)
    state: TrainingState

    @staticmethod
    def before(state: TrainingState, validation: Validation | None) -> "Best":
        """Before the first chunk: `state` itself."""
        loss = np.full(state.step.shape, np.inf)
        if validation is not None:
            loss = np.array(state.progress.best_val_loss)
        return Best(loss, state)

    def or_remembered(self, other: "Best | None", validation) -> "Best":
        """`other`, which a run remembers that goes on from the state of this one, if it
        was judged by the same number as from now on."""
        if other is None:
            return self
        known = np.asarray(self.state.progress.best_val_loss)
        same = np.isinf(known) if validation is None else other.loss == known
        return other if same.all() else self

    def or_better(
        self,
        state: TrainingState,
        verdict: Verdict,
        validation: Validation | None,
        *,
        copies: bool,
    ) -> "Best":
        """The better of this and `state`, after a chunk; member by member.

        **Arguments:**

        - `state`, `verdict`: after the chunk, the latter on the host.
        - `validation`: by which the run is judged.
        - `copies`: whether `state` is to be copied, as its arrays are given away.
        """
        loss = verdict.loss
        if validation is not None:
            loss = np.array(state.progress.best_val_loss)
        better = (loss < self.loss) & verdict.sound
        if not better.any():
            return self
        if not better.all():
            best = _of_members(jnp.asarray(better), state, self.state)
        else:
            best = tree_copy(state) if copies else state
        return Best(np.where(better, loss, self.loss), best)


@eqx.filter_jit
def _of_members(better, state: TrainingState, best: TrainingState) -> TrainingState:
    return tree_where(better, state, best)
