"""The documented network, as a Flax NNX module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .._misc import check_count
from .activations import named_activation


__all__ = [
    "StandardMLP",
]


def __dir__():
    return __all__


class StandardMLP(nnx.Module):
    """A network of dense layers, for rows of a batch."""

    def __init__(
        self,
        layer_sizes: Sequence[int],
        activation: str | Callable[[Array], Array] = "gelu",
        *,
        dropout_rate: int | float = 0.0,
        use_bias: bool = True,
        param_dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """**Arguments:**

        - `layer_sizes`: of the input, the hidden layers and the output.
        - `activation`: between the layers: a function, or the name of one out of
            `ACTIVATIONS`.
        - `dropout_rate`: the part of the hidden units that is left out in training.
        - `use_bias`: whether the layers have one.
        - `param_dtype`: of the parameters; that of default floats, unless given.
        - `rngs`: of the parameters, and of dropout.
        """
        if len(layer_sizes) < 2:
            raise ValueError(
                "`layer_sizes` must name the input and the output at least, got "
                f"{list(layer_sizes)!r}."
            )
        for i, size in enumerate(layer_sizes):
            check_count(f"layer_sizes[{i}]", size)
        if not 0 <= dropout_rate < 1:
            raise ValueError(
                "`dropout_rate` must be at least 0 and less than 1, got "
                f"{dropout_rate!r}."
            )
        dtype = jnp.result_type(float) if param_dtype is None else param_dtype
        sizes = zip(layer_sizes[:-1], layer_sizes[1:], strict=True)
        self.layers = nnx.List(
            nnx.Linear(*pair, use_bias=use_bias, param_dtype=dtype, rngs=rngs)
            for pair in sizes
        )
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs) if dropout_rate else None
        self.activation = named_activation(activation)
        self.layer_sizes = tuple(layer_sizes)

    def __call__(self, x: Float[Array, "rows in"]) -> Float[Array, "rows out"]:
        if x.shape[-1] != self.layer_sizes[0]:
            raise ValueError(
                f"`x` must have {self.layer_sizes[0]} columns, the first of "
                f"`layer_sizes`, got shape {x.shape}."
            )
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
            x = x if self.dropout is None else self.dropout(x)
        return last(x)
