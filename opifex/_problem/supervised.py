from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from .._custom_types import Key
from .._misc import safe_sqrt, squared
from .base import AbstractProblem, Aux


class Pairs(eqx.Module):
    """Inputs and what the model should answer, row by row."""

    inputs: PyTree[Array]
    targets: Inexact[Array, "rows *out"]
    valid: Bool[Array, " rows"] | None = None
    """False for rows that only fill up a ragged batch; `None` where there are none."""


def pointwise(model: Callable, inputs: PyTree[Array], key: Key) -> tuple[Any, Any]:
    """Applies a model written for a single row to every row."""
    del key
    return jax.vmap(model)(inputs), model


def batched(model: Callable, inputs: PyTree[Array], key: Key) -> tuple[Any, Any]:
    """Applies a model written for whole batches."""
    del key
    return model(inputs), model


RowLoss = Callable[
    [Inexact[Array, "rows *out"], Inexact[Array, "rows *out"]], Float[Array, " rows"]
]


def _over_outputs(x: Array) -> Array:
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def mse(prediction, target) -> Float[Array, " rows"]:
    """The squared error of each row, averaged over its outputs."""
    return _over_outputs(squared(prediction - target))


def mae(prediction, target) -> Float[Array, " rows"]:
    """The absolute error of each row, averaged over its outputs."""
    return _over_outputs(jnp.abs(prediction - target))


def huber(delta: float = 1.0) -> RowLoss:
    """Half the squared error up to `delta`, linear with slope `delta` beyond.

    ??? cite "Reference"

        P. J. Huber, "Robust estimation of a location parameter", Annals of Mathematical
        Statistics 35(1), 1964.
    """
    if not delta > 0:
        raise ValueError(f"`delta` must be positive, got {delta!r}.")

    def row_loss(prediction, target):
        error = jnp.abs(prediction - target)
        inside = jnp.minimum(error, delta)
        return _over_outputs(0.5 * inside**2 + delta * (error - inside))

    return row_loss


def relative_l2(prediction, target) -> Float[Array, " rows"]:
    """`|prediction - target| / |target|` of each row, in the 2-norm over its outputs.

    This is the loss of neural operators, where a row is a function on a grid (Li et
    al., "Fourier neural operator for parametric partial differential equations", ICLR
    2021). The norm of a target that vanishes is taken as the machine epsilon.
    """
    error, size = (_norm(x) for x in (prediction - target, target))
    return error / jnp.maximum(size, jnp.finfo(size.dtype).eps)


def _norm(x: Array) -> Array:
    return safe_sqrt(jnp.sum(squared(x).reshape(x.shape[0], -1), axis=1))


class Supervised(AbstractProblem[Any, Pairs]):
    """Fit a model to pairs of inputs and targets.

    **Arguments:**

    - `loss`: maps predictions and targets to one number a row: [`mse`][], [`mae`][],
        [`huber`][]`(delta)`, [`relative_l2`][] or a function of your own.
    - `apply`: maps `(model, inputs, key)` to the predictions and the model, whose
        buffers may have been updated. [`pointwise`][] maps a model of one row over the
        rows; [`batched`][] hands the model whole batches.
    - `metrics`: further functions like `loss`, by name, recorded and not trained on.
    """

    loss: RowLoss = mse
    apply: Callable[[Any, PyTree[Array], Key], tuple[Any, Any]] = pointwise
    metrics: dict[str, RowLoss] = eqx.field(default_factory=dict)

    def least_squares(self, model, batch, key):
        if self.loss is not mse:
            raise TypeError(
                f"`optim` looks at residuals, but `loss` is {self.loss!r}, which is no "
                "mean of squares. Use `mse`, or an optimizer such as `ssbroyden`."
            )
        prediction, _ = self._predict(model, batch, key)
        weights = {}
        if batch.valid is not None:
            valid = batch.valid.astype(jnp.finfo(prediction.dtype).dtype)
            weights["data"] = valid / jnp.maximum(jnp.mean(valid), 1 / valid.size)
        return {"data": prediction - batch.targets}, weights

    def _predict(self, model, batch, key) -> tuple[Array, Any]:
        prediction, model = self.apply(model, batch.inputs, key)
        if prediction.shape != batch.targets.shape:
            raise ValueError(
                "The predictions of `model` and the `targets` must have one shape, got "
                f"{prediction.shape} and {batch.targets.shape}."
            )
        return prediction, model

    def terms(self, model, batch, key):
        prediction, model = self._predict(model, batch, key)

        def mean(name: str, row_loss: RowLoss) -> Array:
            rows = row_loss(prediction, batch.targets)
            if rows.shape != batch.targets.shape[:1]:
                raise ValueError(
                    f"`{name}` must give one number a row, of shape "
                    f"{batch.targets.shape[:1]}, got {rows.shape}."
                )
            if batch.valid is None:
                return jnp.mean(rows)
            total = jnp.sum(jnp.where(batch.valid, rows, 0))
            return total / jnp.maximum(jnp.sum(batch.valid), 1).astype(total.dtype)

        metrics = {name: mean(name, fn) for name, fn in self.metrics.items()}
        counts = {}
        if batch.valid is not None:
            counts = dict.fromkeys(["data", *metrics], jnp.sum(batch.valid))
        return {"data": mean("loss", self.loss)}, Aux(counts, metrics, model)
