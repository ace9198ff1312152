from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._custom_types import Key
from .._misc import check_count


class MLP(eqx.Module):
    """A network of dense layers, for one point.

    Weights are drawn from the normal distribution of Glorot and Bengio, biases are
    zero: the usual start of a physics-informed network.

    ??? cite "Reference"

        X. Glorot and Y. Bengio, "Understanding the difficulty of training deep
        feedforward neural networks", AISTATS 2010.
    """

    weights: list[Float[Array, "_out _in"]]
    biases: list[Float[Array, " _out"]]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[Array], Array] = jnp.tanh,
        *,
        key: Key,
        dtype: Any = None,
    ):
        """**Arguments:**

        - `sizes`: of the input, the hidden layers and the output.
        - `activation`: between the layers, elementwise.
        - `key`, `dtype`: of the weights.
        """
        if len(sizes) < 2:
            raise ValueError(
                f"`sizes` must name the input and the output at least, got {sizes!r}."
            )
        for i, size in enumerate(sizes):
            check_count(f"sizes[{i}]", size)
        draw = jax.nn.initializers.glorot_normal(in_axis=1, out_axis=0)
        keys = jr.split(key, len(sizes) - 1)
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self.weights = [draw(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]
        self.biases = [jnp.zeros(s[:1], dtype) for s in shapes]
        self.activation = activation

    def __call__(self, point: Float[Array, " in"]) -> Float[Array, " out"]:
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            point = self.activation(weight @ point + bias)
        return last[0] @ point + last[1]
