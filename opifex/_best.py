"""What a run that ends early hands back."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ._misc import tree_allfinite, tree_copy, tree_where
from ._state import StepInfo, TrainingState
from ._validation import training_loss, Validation


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
        return Best(loss, tree_copy(state))

    def or_remembered(self, other: "Best | None", validation) -> "Best":
        """`other`, which a run remembers that goes on from the state of this one, if it
        was judged by the same number as from now on."""
        if other is None:
            return self
        known = np.asarray(self.state.progress.best_val_loss)
        same = np.isinf(known) if validation is None else other.loss == known
        return other if same.all() else self

    def or_better(
        self, state: TrainingState, infos: StepInfo, validation: Validation | None
    ) -> "Best":
        """The better of this and `state`, after a chunk; member by member."""
        if validation is None:
            loss = np.asarray(training_loss(state, infos))
        else:
            loss = np.array(state.progress.best_val_loss)
        better = loss < self.loss
        if not better.any():
            return self
        best = _keep_better(jnp.asarray(better), state, self.state)
        return Best(np.where(better, loss, self.loss), best)


@eqx.filter_jit
def _keep_better(better, state: TrainingState, best: TrainingState) -> TrainingState:
    allfinite = eqx.filter_vmap(tree_allfinite) if state.step.ndim else tree_allfinite
    return tree_where(better & allfinite(state.model), state, best)
