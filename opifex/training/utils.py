"""Calls of models, energies and forces that say what is wrong, and with what."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array

from .._misc import check_finite
from ..nnx.bridge import NNXModel
from ..nnx.models import is_per_point


__all__ = [
    "ModelCallError",
    "safe_compute_energy",
    "safe_compute_forces",
    "safe_model_call",
]


def __dir__():
    return __all__


class ModelCallError(RuntimeError):
    """A model could not be called. Its own error is the cause of this one."""


def safe_model_call(model: Any, x: Array, **kwargs: Any) -> Array:
    """What a model answers to a batch, in the mode that it is in.

    **Arguments:**

    - `model`: maps `(n, features)` to `(n, outputs)`; those of a single point are
        mapped over the rows.
    - `x`: a batch.
    - `kwargs`: handed to the model.

    **Raises:** `TypeError` for what is no model or no array; `ValueError` for NaN in
    `x` or in the answer, and for an answer that has not a row for each of `x`;
    [`ModelCallError`][] for an error in the model.
    """
    if not callable(model):
        raise TypeError(
            f"`model` must be callable, got {model!r} of type {type(model).__name__}."
        )
    _check_array("x", x)
    point = lambda row: model(row, **kwargs)
    batch = jax.vmap(point) if is_per_point(model) else point
    return _called(model, batch, "x", x)


def safe_compute_energy(model: Any, positions: Array) -> Array:
    """The energies of molecules, in evaluation mode.

    **Arguments:**

    - `model`: with a method `compute_energy`, or else itself the function of positions.
    - `positions`: a row a molecule, `(batch, atoms, 3)`.

    **Returns:** a number a molecule, `(batch, 1)` or `(batch,)`, as `model` gives it.

    **Raises:** as [`safe_model_call`][]; and `ValueError` for anything but one number a
    molecule.
    """
    energy = _called(model, _energy_of(model), "positions", positions)
    _check_energies(energy, positions)
    return energy


def safe_compute_forces(model: Any, positions: Array) -> Array:
    """Minus the derivative of [`safe_compute_energy`][] by the positions.

    **Returns:** the shape of `positions`.

    **Raises:** as [`safe_compute_energy`][].
    """
    energy_of = _energy_of(model)

    def minus_total(x):
        energy = energy_of(x)
        _check_energies(energy, x)
        return -jnp.sum(energy)

    _check_array("positions", positions)
    return _called(model, jax.grad(minus_total), "positions", positions)


def _called(model: Any, function: Callable, argument: str, x: Array) -> Array:
    _check_array(argument, x)
    check_finite(argument, x)
    try:
        answer = function(x)
    except Exception as error:
        raise _told(model, argument, x, error) from error
    if not eqx.is_array(answer) or answer.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"`model` of type {type(model).__name__} must give a row for each of the "
            f"{x.shape[0]} of `{argument}`, got {_described(answer)}."
        )
    _check_answer(model, argument, answer)
    return answer


def _told(model, argument, x, error: Exception) -> ModelCallError:
    return ModelCallError(
        f"`model` of type {type(model).__name__} failed on `{argument}` of shape "
        f"{x.shape} and dtype {x.dtype}: {type(error).__name__}: {error}"
    )


def _energy_of(model: Any) -> Callable[[Array], Array]:
    """The energy as a function of positions, without noise, and changing nothing."""
    if isinstance(model, nnx.Module):
        quiet: Any = NNXModel.of(model).module()
        quiet.eval()
    else:
        quiet = eqx.nn.inference_mode(model)
    method = getattr(quiet, "compute_energy", None)
    if method is not None:
        return method
    if not callable(quiet):
        raise TypeError(
            f"`model` of type {type(model).__name__} has no method `compute_energy` "
            "and is not callable. Give it one of the two."
        )
    energy: Any = jax.vmap(quiet) if is_per_point(quiet) else quiet
    return energy


def _check_array(name: str, x: Any) -> None:
    if not isinstance(x, jax.Array | np.ndarray) or x.ndim == 0:
        raise TypeError(
            f"`{name}` must be an array with a row for each point, got {_described(x)}."
        )


def _check_energies(energy: Array, positions: Array) -> None:
    rows = positions.shape[0]
    if energy.shape not in ((rows,), (rows, 1)):
        raise ValueError(
            f"`model` must give one energy a molecule, of shape {(rows, 1)}, got "
            f"{energy.shape}."
        )


def _check_answer(model: Any, argument: str, answer: Array) -> None:
    if isinstance(answer, Tracer) or not eqx.is_inexact_array(answer):
        return
    finite = np.isfinite(np.asarray(answer).astype(complex))
    if not finite.all():
        bad = int(np.argmin(finite.reshape(answer.shape[0], -1).all(1)))
        raise ValueError(
            f"`model` of type {type(model).__name__} is not finite, first in row "
            f"{bad} of `{argument}`. Look at that row, or at the parameters."
        )


def _described(x: Any) -> str:
    shape = getattr(x, "shape", None)
    kind = type(x).__name__
    return kind if shape is None else f"{kind} of shape {shape}"
