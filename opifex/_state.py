from typing import Any, Generic

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ._custom_types import Count, Key, Model, OptState, Scalar, Terms
from ._misc import unknown_name
from ._results import RESULTS


# The place of a purpose in this list enters every random number: append, never reorder.
_PURPOSES = ("init", "batch", "loss", "resample", "recover")


class Progress(eqx.Module):
    """What early stopping and a resumed run need to know of the past."""

    epoch: Count  # chunks completed
    best_loss: Scalar  # lowest loss of an accepted step
    best_val_loss: Scalar
    plateau_count: Count  # validations since `best_val_loss` last fell
    result: RESULTS

    @staticmethod
    def start() -> "Progress":
        """Nothing has been seen yet."""
        zero = lambda: jnp.zeros((), jnp.int32)
        worst = lambda: jnp.full((), jnp.inf, jnp.result_type(float))
        return Progress(zero(), worst(), worst(), zero(), RESULTS.successful)


class TrainingState(eqx.Module, Generic[Model]):
    """Everything that changes during training, and nothing that does not."""

    model: Model
    opt_state: OptState
    sampler_state: Any
    weighting_state: Any
    recovery_state: Any
    step_scale: Scalar  # from recover to train_step: multiplies the update
    clip_norm: Scalar | None  # likewise: bounds the gradient, where recovery clips
    progress: Progress
    step: Count
    key: Key

    def key_for(self, purpose: str) -> Key:
        """A key for this step and this purpose: `"init"`, `"batch"`, `"loss"`,
        `"resample"` or `"recover"`.

        Nothing is consumed: a resumed run draws what an uninterrupted one draws.
        """
        if purpose not in _PURPOSES:
            raise ValueError(unknown_name("purpose", purpose, _PURPOSES))
        return jr.fold_in(jr.fold_in(self.key, _PURPOSES.index(purpose)), self.step)


class StepInfo(eqx.Module):
    """What one step tells the outside world; never read by the next step.

    All of it was measured at the model before the update.
    """

    loss: Scalar
    terms: Terms  # the named parts of the loss, before weighting
    weights: Terms
    metrics: Terms
    leaf_norms: Float[Array, " leaves"]  # gradient norm of each inexact array
    grad_norm: Scalar  # before clipping
    step_scale: Scalar
    result: RESULTS
