from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._misc import unknown_name


Activation = Callable[[Array], Array]

ACTIVATIONS: dict[str, Activation] = {
    "celu": jax.nn.celu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "identity": lambda x: x,
    "leaky_relu": jax.nn.leaky_relu,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "sin": jnp.sin,
    "softplus": jax.nn.softplus,
    "swish": jax.nn.swish,
    "tanh": jnp.tanh,
}


def named_activation(activation: str | Activation) -> Activation:
    """The function of a name out of `ACTIVATIONS`; a function is handed back.

    **Raises:** `ValueError` for an unknown name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(unknown_name("activation", str(activation), ACTIVATIONS))
    return ACTIVATIONS[activation]
