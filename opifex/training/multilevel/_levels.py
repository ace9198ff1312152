"""What width and mode hierarchies have in common: a run that climbs from size to size.

All of it is that of the functional library: [`prolongate`][] carries the state of
training from level to level, and each level is a [`Recipe`][] under [`fit`][].
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from ..._callback.collect import Collect, join
from ..._cascade.resize import prolongate
from ..._fit import fit
from ..._misc import check_count
from ..._optimizer.base import check_optimizer
from ..._problem.supervised import RowLoss, Supervised
from ..._recipe import Recipe
from ..._recovery.none import NoRecovery
from ..._sampler.fixed import Fixed
from ..._sampler.minibatch import Minibatch
from ..._state import TrainingState
from ..._step import init, trainable, updated
from ..._transfer.base import AbstractTransfer
from ...nnx.bridge import NNXModel
from ...nnx.models import apply_of, as_pytree, predict


def check_levels(num_levels: int, factor: int | float) -> None:
    """Raises unless a hierarchy can be made of so many levels."""
    check_count("num_levels", num_levels)
    if isinstance(factor, float) and not 0 < factor <= 1:
        raise ValueError(
            f"`coarsening_factor` must lie between 0 and 1, got {factor!r}. It is what "
            "the widths of one level are multiplied by for the next coarser one."
        )


def check_epochs(epochs: Sequence[int], num_levels: int) -> None:
    """Raises unless every level is told how many epochs it is trained for."""
    for i, count in enumerate(epochs):
        check_count(f"level_epochs[{i}]", count, least=0)
    if len(epochs) != num_levels:
        raise ValueError(
            f"`level_epochs` must hold one number a level, {num_levels} in all, got "
            f"{list(epochs)!r}."
        )


def as_model(tree: Any) -> Any:
    """What the user knows a pytree as."""
    return tree.module() if isinstance(tree, NNXModel) else tree


class AbstractLevels(abc.ABC):
    """Models from coarse to fine, one of which is being trained."""

    def __init__(
        self,
        hierarchy: Sequence[Any],
        optimizer: optax.GradientTransformation,
        transfer: AbstractTransfer,
        level_epochs: Sequence[int],
        loss: RowLoss,
        prolongate_fn: Callable[[Any, Any], Any] | None = None,
        state_transition_fn: Callable[[Any, Any, Any], Any] | None = None,
    ):
        if not hierarchy:
            raise ValueError("`hierarchy` is empty; give at least one model.")
        check_optimizer("optimizer", optimizer)
        check_epochs(level_epochs, len(hierarchy))
        self._hierarchy = list(hierarchy)
        self._optimizer = optimizer
        self._transfer = transfer
        self._level_epochs = list(level_epochs)
        self._loss = loss
        self._prolongate = prolongate_fn
        self._transition = state_transition_fn
        self._level = 0
        self._state = self._begin(as_pytree(self._hierarchy[0]), jr.key(0))

    @property
    def current_level(self) -> int:
        """The number of the level, from zero, the coarsest."""
        return self._level

    @property
    def current_level_index(self) -> int:
        """The same as `current_level`."""
        return self._level

    @property
    def model(self) -> Any:
        """The model of the current level, as it is now."""
        return self._hierarchy[self._level]

    def get_current_model(self) -> Any:
        """The same as `model`."""
        return self.model

    @property
    def opt_state(self) -> Any:
        """The state of the optimizer at the current level."""
        return self._state.opt_state

    def is_at_finest(self) -> bool:
        """Whether there is no finer level."""
        return self._level == len(self._hierarchy) - 1

    def get_epochs_for_current_level(self) -> int:
        """For how many epochs `train` trains the current level."""
        return self._level_epochs[self._level]

    def advance_level(self) -> bool:
        """Goes on to the next finer level, with the function that was learned and the
        moments of the optimizer.

        **Returns:** whether there was one.
        """
        if self.is_at_finest():
            return False
        coarse, fine = self._hierarchy[self._level : self._level + 2]
        self._state = self._raised(coarse, fine)
        self._level += 1
        self._show()
        return True

    def step(self, grads: Any) -> Any:
        """One step of the optimizer.

        **Arguments:**

        - `grads`: of the current model, as from `nnx.grad` or `eqx.filter_grad`.

        **Returns:** the model after the step; a module of NNX is changed in place.
        """
        self._state = _stepped(self._optimizer, self._state, self._like_params(grads))
        self._show()
        return self.model

    def train(
        self,
        train_data: tuple[Any, Any],
        val_data: tuple[Any, Any] | None = None,
        *,
        batch_size: int = 32,
        seed: int = 0,
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Trains the current level and all finer ones, each for its epochs.

        **Arguments:**

        - `train_data`: inputs `(rows, ...)` and targets.
        - `val_data`: likewise; judged after every level, on the data as it is given.
        - `batch_size`: rows a step.
        - `seed`: of the order of the rows.

        **Returns:** the finest model, and a history: `train_loss` and `level` by epoch,
        and `val_loss` by level, if there is `val_data`.
        """
        check_count("batch_size", batch_size)
        check_count("seed", seed, least=0)
        pairs = lambda data: tuple(jnp.asarray(x) for x in data)
        losses, levels, val_losses, key = [], [], [], jr.key(seed)
        while True:
            epochs = self.get_epochs_for_current_level()
            losses.append(self._train_level(pairs(train_data), batch_size, epochs, key))
            levels.append(np.full(epochs, self._level))
            if val_data is not None:
                val_losses.append(self.evaluate(*pairs(val_data)))
            if not self.advance_level():
                break
        history = {"train_loss": np.concatenate(losses)}
        history["level"] = np.concatenate(levels)
        if val_data is not None:
            history["val_loss"] = np.array(val_losses)
        return self.model, history

    def evaluate(self, inputs: Array, targets: Array) -> float:
        """The mean loss of the current model, in evaluation mode."""
        return float(_judged(self._loss, self._state.model, inputs, targets))

    @abc.abstractmethod
    def level_data(self, inputs: Array, targets: Array) -> tuple[Array, Array]:
        """What the current level is trained on."""

    def _train_level(self, data, batch_size: int, epochs: int, key) -> np.ndarray:
        """The mean loss of every epoch."""
        sampler = Minibatch(*self.level_data(*data), batch_size)
        tree, steps = self._state.model, sampler.steps_per_epoch
        problem = Supervised(self._loss, apply_of(tree))
        recipe = Recipe(problem, self._optimizer, sampler, NoRecovery(), steps=steps)
        carried = ("opt_state", "step_scale", "step")
        mine = {name: getattr(self._state, name) for name in carried}
        state = replace(recipe.init(tree, key=jr.fold_in(key, self._level)), **mine)
        chunks: list[Any] = []
        try:
            if epochs:
                state = fit(
                    recipe, state, num_chunks=epochs, callbacks=[Collect(chunks.append)]
                )
        finally:
            # Whatever ended it: the model is what was learned so far.
            bare = {"sampler_state": None, "recovery_state": self._state.recovery_state}
            self._state = replace(state, weighting_state=None, **bare)
            self._show()
        losses = np.asarray(join(chunks).loss) if chunks else np.zeros(0)
        return losses.reshape(-1, steps).mean(axis=1)

    def _begin(self, tree: Any, key: Any) -> TrainingState:
        state = init(self._optimizer, Fixed(()), NoRecovery(), tree, key=key)
        return replace(state, weighting_state=None)

    def _raised(self, coarse: Any, fine: Any) -> TrainingState:
        optim, like = self._optimizer, as_pytree(fine)
        carry = lambda: prolongate(
            self._transfer, optim, NoRecovery(), self._state, like
        )
        if self._prolongate is None:
            return carry()
        tree = as_pytree(self._prolongate(coarse, fine))
        if self._transition is None:
            return replace(carry(), model=tree)
        opt_state = self._transition(self._state.opt_state, coarse, fine)
        return replace(self._state, model=tree, opt_state=opt_state)

    def _show(self) -> None:
        """Hands the values to the model that the user holds."""
        model, tree = self._hierarchy[self._level], self._state.model
        if isinstance(model, nnx.Module):
            tree.write_to(model)
        else:
            self._hierarchy[self._level] = tree

    def _like_params(self, grads: Any) -> Any:
        """Gradients in the form of the pytree that is trained."""
        tree = self._state.model
        params = eqx.filter(tree, trainable(tree))
        if not isinstance(tree, NNXModel):
            return eqx.filter(grads, eqx.is_array)
        named = tree.layout.params.take(grads)[1]
        if set(named) != set(params.params):
            raise ValueError(
                f"`grads` must have the parameters {sorted(params.params)}, got "
                f"{sorted(named)}. Take them of `get_current_model()`."
            )
        return eqx.tree_at(lambda m: m.params, params, named)


@eqx.filter_jit
def _stepped(optim, state: TrainingState, grads: Any) -> TrainingState:
    params, rest = eqx.partition(state.model, trainable(state.model))
    moved, opt_state = updated(optim, state, params, grads)
    model = eqx.combine(moved, rest)
    return replace(state, model=model, opt_state=opt_state, step=state.step + 1)


@eqx.filter_jit
def _judged(loss: RowLoss, tree: Any, inputs: Array, targets: Array) -> Array:
    return jnp.mean(loss(predict(tree, inputs), targets))
