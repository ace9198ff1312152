"""What a run that ends early hands back."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._devices import on_host
from ._misc import tree_allfinite, tree_where
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
        keep: Callable[[TrainingState], TrainingState],
    ) -> "Best":
        """The better of this and `state`, after a chunk; member by member. What is not
        finite is not better, whatever its loss was.

        **Arguments:**

        - `state`, `infos`: after the chunk, the latter on the host.
        - `validation`: by which the run is judged.
        - `keep`: makes of `state` what can be read when chunks have gone on from it.
        """
        if validation is None:
            loss = training_loss(state, infos)
        else:
            loss = np.array(state.progress.best_val_loss)
        better = loss < self.loss
        if better.any():
            better = better & _are_sound(state)
        if not better.any():
            return self
        if better.all():
            best = keep(state)
        else:
            best = _of_members(jnp.asarray(better), state, self.state)
        return Best(np.where(better, loss, self.loss), best)


def _are_sound(state: TrainingState) -> np.ndarray:
    """Whether the model is finite, or that of each member."""
    check = _all_finite if state.step.ndim else _is_finite
    return on_host(check(jtu.tree_leaves(eqx.filter(state.model, eqx.is_array))))


# Not along with the chunk: to compute anything beside it may change its last bits.
_is_finite = jax.jit(tree_allfinite)
_all_finite = jax.jit(jax.vmap(tree_allfinite))


@eqx.filter_jit
def _of_members(better, state: TrainingState, best: TrainingState) -> TrainingState:
    return tree_where(better, state, best)
