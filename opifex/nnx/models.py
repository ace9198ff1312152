"""Every kind of model that the documented classes accept."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import jax.tree_util as jtu
from flax import nnx
from jaxtyping import Array

from .._problem.supervised import batched, pointwise
from ..neural import FNO, MLP
from .bridge import NNXModel


def as_pytree(model: Any) -> Any:
    """What is trained in place of `model`."""
    if isinstance(model, nnx.Module):
        if not callable(model):
            raise TypeError(
                f"`model` of type {type(model).__name__} is not callable. Give it a "
                "method `__call__` that maps `(n, features)` to `(n, outputs)`."
            )
        return NNXModel.of(model)
    if not callable(model):
        raise TypeError(
            "`model` must be an `nnx.Module`, an `eqx.Module` or another callable "
            f"pytree, got {model!r} of type {type(model).__name__}."
        )
    if not any(eqx.is_inexact_array(x) for x in jtu.tree_leaves(model)):
        raise TypeError(
            f"`model` of type {type(model).__name__} has no array to train. Give an "
            "`nnx.Module`, an `eqx.Module` or another callable pytree with parameters."
        )
    return model


def is_per_point(model: Any) -> bool:
    """Whether a model answers one point at a time: the layers and networks of Equinox
    and of this library do, and models that say so by an attribute `per_point`."""
    ours = isinstance(model, MLP | FNO)
    of_equinox = type(model).__module__.startswith("equinox.nn")
    return ours or of_equinox or bool(getattr(model, "per_point", False))


def apply_of(model: Any) -> Callable:
    """How a model is applied to a batch in training: see [`Supervised`][]."""
    if isinstance(model, NNXModel):
        return _updating
    if _has_dropout(model):
        return _noisy_points if is_per_point(model) else _noisy_batch
    return pointwise if is_per_point(model) else batched


def predict(model: Any, inputs: Any) -> Array:
    """What a model answers to a batch in evaluation mode, changing nothing."""
    if isinstance(model, NNXModel):
        return model(inputs)
    model = eqx.nn.inference_mode(model)
    return jax.vmap(model)(inputs) if is_per_point(model) else model(inputs)


def noiseless(model: Any, inputs: Any, key: Any) -> tuple[Any, Any]:
    """[`predict`][], as [`Supervised`][] applies a model."""
    del key
    return predict(model, inputs), model


def _updating(model: NNXModel, inputs: Any, key: Any) -> tuple[Any, Any]:
    # A module of NNX has random streams of its own.
    del key
    return model.update(inputs)


def _noisy_points(model: Any, inputs: Any, key: Any) -> tuple[Any, Any]:
    keys = jr.split(key, jtu.tree_leaves(inputs)[0].shape[0])
    return jax.vmap(lambda x, key: model(x, key=key))(inputs, keys), model


def _noisy_batch(model: Any, inputs: Any, key: Any) -> tuple[Any, Any]:
    return model(inputs, key=key), model


def _has_dropout(model: Any) -> bool:
    is_dropout = lambda x: isinstance(x, eqx.nn.Dropout)
    # A dropout of rate zero is how `eqx.nn.MLP` and others say that they have none.
    leaves = jtu.tree_leaves(model, is_leaf=is_dropout)
    return any(is_dropout(x) and x.p > 0 and not x.inference for x in leaves)
