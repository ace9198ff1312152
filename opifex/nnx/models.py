"""Every kind of model that the documented classes accept."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from flax import nnx
from jaxtyping import Array

from .._misc import Frozen
from .._problem.forces import WithForces
from .._problem.supervised import batched, pointwise
from ..neural import FNO, MLP
from ..quantum.functionals import AbstractFunctional
from ..quantum.problem import FitFunctional
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


class Imposed(eqx.Module):
    """A model inside the formula that meets exact conditions whatever it answers.

    It maps a batch of points to the fields there; in evaluation mode, if called.

    **Arguments:**

    - `network`: the user's model, as a pytree.
    - `ansatz`: the formula.
    """

    network: Any
    ansatz: Frozen

    def embed(self, points: Any) -> Array:
        """What the network is given."""
        domain = self.ansatz.value.setting.domain
        if points.ndim != 2 or points.shape[1] != domain.dim:
            raise ValueError(
                f"`boundary_config.domain` is of dimension {domain.dim}, but the "
                f"inputs have shape {points.shape}"
            )
        return jax.vmap(self.ansatz.value.embed)(points)

    def around(self, raw: Array, points: Array) -> Array:
        """The fields, where the network answered `raw`."""
        return jax.vmap(self.ansatz.value.around)(raw, points)

    def __call__(self, points: Array) -> Array:
        return self.around(predict(self.network, self.embed(points)), points)


class SelfConsistent(eqx.Module):
    """A functional inside the equations that are solved with it: it answers positions
    of nuclei `(rows, nuclei)` in bohr with energies `(rows, 1)` in hartree."""

    functional: AbstractFunctional
    problem: FitFunctional

    def __call__(self, positions: Array) -> Array:
        return self.problem.solve(self.functional, positions).energy[:, None]


def network_of(model: Any) -> Any:
    """The user's own model, without the formula or the equations around it."""
    if isinstance(model, SelfConsistent):
        return model.functional
    return model.network if isinstance(model, Imposed) else model


def real_dtype(model: Any) -> Any:
    """The type of the real and imaginary parts of its parameters."""
    arrays = [x for x in jtu.tree_leaves(model) if eqx.is_inexact_array(x)]
    return jnp.finfo(arrays[0].dtype).dtype


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
    if isinstance(model, Imposed):
        return _inside
    if _has_dropout(model):
        return _noisy_points if is_per_point(model) else _noisy_batch
    return pointwise if is_per_point(model) else batched


def predict(model: Any, inputs: Any) -> Array:
    """What a model answers to a batch in evaluation mode, changing nothing."""
    if isinstance(model, NNXModel | Imposed):
        return model(inputs)
    model = eqx.nn.inference_mode(model)
    return jax.vmap(model)(inputs) if is_per_point(model) else model(inputs)


def noiseless(model: Any, inputs: Any, key: Any) -> tuple[Any, Any]:
    """[`predict`][], as [`Supervised`][] applies a model."""
    del key
    return predict(model, inputs), model


def predict_forces(model: Any, positions: Any) -> Array:
    """The energies that [`predict`][] gives, and the forces; see [`WithForces`][]."""
    return WithForces(noiseless)(model, positions, None)[0]


def _inside(model: Imposed, points: Any, key: Any) -> tuple[Any, Any]:
    network = model.network
    raw, network = apply_of(network)(network, model.embed(points), key)
    return model.around(raw, points), replace(model, network=network)


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
