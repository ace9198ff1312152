"""What a run that ends early hands back."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
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
        infos: StepInfo,
        validation: Validation | None,
        *,
        copies: bool,
    ) -> "Best":
        """The better of this and `state`, after a chunk; member by member.

        **Arguments:**

        - `state`, `infos`: after the chunk, the latter on the host.
        - `validation`: by which the run is judged.
        - `copies`: whether `state` is to be copied, as its arrays are given away.
        """
        if validation is None:
            loss = training_loss(state, infos)
        else:
            loss = np.array(state.progress.best_val_loss)
        better = loss < self.loss
        if not better.any():
            return self
        if state.step.ndim:
            best = _better_members(jnp.asarray(better), state, self.state)
        elif not _is_sound(jtu.tree_leaves(eqx.filter(state.model, eqx.is_array))):
            best = self.state
        else:
            best = tree_copy(state) if copies else state
        return Best(np.where(better, loss, self.loss), best)


# Not along with the chunk: to compute anything beside it may change its last bits.
_is_sound = jax.jit(tree_allfinite)


@eqx.filter_jit
def _better_members(better, state: TrainingState, best: TrainingState) -> TrainingState:
    sound = eqx.filter_vmap(tree_allfinite)(state.model)
    return tree_where(better & sound, state, best)
