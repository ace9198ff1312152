"""What the documented trainers are given, checked before the first step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._misc import check_finite
from .._problem.forces import packed
from .._problem.supervised import Pairs
from .models import is_per_point, network_of, predict, predict_forces


class Data(NamedTuple):
    """Inputs `(rows, ...)` and targets, or points of an equation without any."""

    inputs: Array
    targets: Array | None

    @property
    def pairs(self) -> Pairs:
        assert self.targets is not None
        return Pairs(self.inputs, self.targets)


def checked_pair(
    name: str, given: Any, model: Any, *, points: bool, forces: bool = False
) -> Data:
    """A pair of inputs and targets that the model can be trained on.

    **Arguments:**

    - `name`: of the argument, for messages.
    - `given`: the pair.
    - `model`: the pytree that is trained.
    - `points`: whether the targets may be missing, as for points of an equation.
    - `forces`: whether the targets are pairs of energies and forces.

    **Raises:** `ValueError` or `TypeError` naming the argument.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(
            f"`{name}` must be a pair `(x, y)`, got {type(given).__name__}"
            + (f" of length {len(given)}." if isinstance(given, tuple | list) else ".")
        )
    # A model of tokens takes whole numbers; points of an equation are none.
    inputs = _array(f"{name}[0]", given[0], floats=points)
    if given[1] is None:
        if not points:
            raise ValueError(
                f"`{name}[1]` is `None`, and there is no physics loss to train on. "
                "Give targets, or call `set_physics_loss` first."
            )
        _answers(f"{name}[0]", model, inputs)
        return Data(inputs, None)
    if forces:
        targets = _energies_and_forces(f"{name}[1]", given[1], inputs)
    else:
        targets = _array(f"{name}[1]", given[1], floats=True)
    if inputs.shape[0] != targets.shape[0]:
        raise ValueError(
            f"`{name}` must have as many inputs as targets, got shapes {inputs.shape} "
            f"and {targets.shape}."
        )
    see = predict_forces if forces else predict
    answers = _answers(f"{name}[0]", model, inputs, see)
    if answers.shape == (*targets.shape, 1):
        targets = targets[..., None]
    if answers.shape != targets.shape:
        raise ValueError(
            f"`{name}[1]` must have the shape of what `model` answers, "
            f"{answers.shape}, got {targets.shape}."
        )
    return Data(inputs, targets)


def _energies_and_forces(name: str, given: Any, inputs: Array) -> Array:
    """Both in one matrix."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(
            f"`{name}` must be a pair `(energies, forces)`, because "
            "`quantum_config.force_weight` is given, got "
            f"{type(given).__name__}. Give both, or leave `force_weight` out."
        )
    energies = _array(f"{name}[0]", given[0], floats=True)
    forces = _array(f"{name}[1]", given[1], floats=True)
    if forces.shape != inputs.shape or inputs.ndim != 3 or inputs.shape[-1] != 3:
        raise ValueError(
            f"`{name}[1]` must be forces of the shape of the positions `(rows, atoms, "
            f"3)`, got {forces.shape} for positions of shape {inputs.shape}."
        )
    if energies.shape not in (inputs.shape[:1], (inputs.shape[0], 1)):
        raise ValueError(
            f"`{name}[0]` must be one energy a row, of shape {(inputs.shape[0], 1)}, "
            f"got {energies.shape}."
        )
    return packed(energies, forces)


def _array(name: str, given: Any, *, floats: bool) -> Array:
    """An array without NaN, of one row at least."""
    try:
        if given is None:
            raise TypeError
        array = jnp.asarray(given)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be an array, got {type(given).__name__}."
        ) from error
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have a row for each sample, got a number.")
    if floats and not jnp.issubdtype(array.dtype, jnp.inexact):
        raise ValueError(
            f"`{name}` must be real or complex floats, got dtype {array.dtype}. "
            "Convert them: `.astype(float)`."
        )
    check_finite(name, np.asarray(array) if array.size else array)
    return array


def _answers(
    name: str, model: Any, inputs: Array, see: Callable = predict
) -> jax.ShapeDtypeStruct:
    """The shape of what the model answers, without computing it."""
    try:
        answers = eqx.filter_eval_shape(see, model, inputs)
    except Exception as error:
        raise ValueError(
            f"`model` cannot be applied to `{name}` of shape {inputs.shape} and dtype "
            f"{inputs.dtype}: {_reason(error)}. Give rows of the width and dtype that "
            f"it takes{_hint(model)}."
        ) from error
    if not eqx.is_array(answers) and not isinstance(answers, jax.ShapeDtypeStruct):
        raise TypeError(
            "`model` must answer one array `(n, outputs)`, got "
            f"{type(answers).__name__}."
        )
    if answers.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            f"`model` must answer `{name}` row by row, with {inputs.shape[0]} rows, "
            f"got shape {answers.shape}{_hint(model)}."
        )
    return answers


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _hint(model: Any) -> str:
    if is_per_point(network_of(model)):
        return ""
    return "; or, if `model` is written for one point, give it `per_point = True`"
