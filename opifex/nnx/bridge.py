"""An `nnx.Module` as a pytree, and back."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from flax import nnx
from jaxtyping import Array

from .._misc import Frozen


class _Part(NamedTuple):
    """How to put some of the variables of a module back together."""

    structure: Any  # of the `nnx.State`, hashable
    names: tuple[str, ...]
    key_kinds: tuple[str | None, ...]  # of those that are random keys

    @staticmethod
    def take(state: Any) -> "tuple[_Part, dict[str, Array]]":
        found, structure = jtu.tree_flatten_with_path(state)
        names = tuple(_name(path) for path, _ in found)
        arrays = [jnp.asarray(x) for _, x in found]
        kinds = tuple(str(jr.key_impl(x)) if _is_key(x) else None for x in arrays)
        # As plain numbers: keys know neither `astype` nor arithmetic.
        plain = [jr.key_data(x) if _is_key(x) else x for x in arrays]
        return _Part(structure, names, kinds), dict(zip(names, plain, strict=True))

    def state(self, arrays: dict[str, Array]) -> Any:
        """An `nnx.State` of new variables, that share nothing with any module."""
        leaves = [
            arrays[name] if kind is None else jr.wrap_key_data(arrays[name], impl=kind)
            for name, kind in zip(self.names, self.key_kinds, strict=True)
        ]
        return jtu.tree_unflatten(self.structure, leaves)


class _Layout(NamedTuple):
    """All of a module that is no array; two of one kind are equal."""

    graphdef: Any  # hashable
    params: _Part
    rest: _Part


class NNXModel(eqx.Module):
    """An `nnx.Module`, frozen into a pytree.

    Every `nnx.Param` is trained. Every other variable (batch statistics, the keys and
    counters of random streams, ...) is carried along and updated, never trained.
    """

    params: dict[str, Array]
    rest: Frozen
    layout: _Layout = eqx.field(static=True, repr=False)

    @staticmethod
    def of(module: nnx.Module) -> "NNXModel":
        """The module as it is now. It is not touched."""
        graphdef, params, rest = nnx.split(module, nnx.Param, ...)
        params_part, params = _Part.take(params)
        rest_part, rest = _Part.take(rest)
        layout = _Layout(graphdef, params_part, rest_part)
        return NNXModel(params, Frozen(rest), layout)

    def module(self) -> Any:
        """A new module with these values."""
        return nnx.merge(self.layout.graphdef, *self._states())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module answers in evaluation mode: no dropout, running averages.

        Nothing is updated.
        """
        module = self.module()
        module.eval()
        return module(*args, **kwargs)

    def update(self, *args: Any, **kwargs: Any) -> "tuple[Any, NNXModel]":
        """What the module answers in the mode it was given in, and the model with the
        variables that this changed."""
        module = self.module()
        answer = module(*args, **kwargs)
        _, rest = _Part.take(nnx.state(module, nnx.Not(nnx.Param)))
        # Variables made by the call itself are not part of the layout.
        rest = {name: rest[name] for name in self.rest.value}
        return answer, eqx.tree_at(lambda m: m.rest.value, self, rest)

    def write_to(self, module: nnx.Module) -> None:
        """Gives the variables of `module` these values."""
        for state in self._states():
            nnx.update(module, jtu.tree_map(lambda x: jnp.array(x, copy=True), state))

    def _states(self) -> tuple[Any, Any]:
        layout = self.layout
        return layout.params.state(self.params), layout.rest.state(self.rest.value)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _name(path: Any) -> str:
    """`"layers.0.kernel"`, without what the state wraps around the array."""
    parts = [jtu.keystr((entry,), simple=True) for entry in path]
    return ".".join(part for part in parts if part != "value")
