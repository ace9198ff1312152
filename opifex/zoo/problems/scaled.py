"""Networks for solutions that oscillate."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._custom_types import Key
from ...neural.mlp import MLP


class Scaled(eqx.Module):
    """Dense layers, their inputs scaled.

    A network of tanh layers begins nearly linear, and finds slow waves long before
    fast ones. With scaled inputs it begins with as many bends, and one of sines begins
    as waves of about that many radians.

    ??? cite "Reference"

        V. Sitzmann, J. N. P. Martel, A. W. Bergman, D. B. Lindell and G. Wetzstein,
        "Implicit neural representations with periodic activation functions", NeurIPS
        2020. There the activation is the sine, the one scale is 30, and the weights are
        drawn from another distribution.
    """

    network: MLP
    scales: tuple[int | float, ...] = eqx.field(static=True)

    def __call__(self, point: Float[Array, " in"]) -> Float[Array, " out"]:
        return self.network(point * jnp.array(self.scales, point.dtype))


def scaled(
    *scales: int | float, activation: Callable[[Array], Array] = jnp.tanh
) -> Callable[..., Scaled]:
    """What makes such networks, with one scale a feature."""

    def make(sizes: Sequence[int], *, key: Key, dtype: Any = None) -> Scaled:
        return Scaled(MLP(sizes, activation, key=key, dtype=dtype), scales)

    return make


def sines(*scales: int | float) -> Callable[..., Scaled]:
    """The same with sines between the layers."""
    return scaled(*scales, activation=jnp.sin)
