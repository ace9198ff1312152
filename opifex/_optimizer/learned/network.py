"""The network that all parameters share, and what it is told about each."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ..._custom_types import Count, Key, Scalar


NUM_LOCAL, NUM_HIDDEN, NUM_OUT = 8, 12, 3
# In steps, half a decade apart: the number of steps is seen on a logarithmic scale.
TIMES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
NUM_SHARED = len(TIMES) + 3
# A step is at most this many times longer or shorter than Adam's.
MAX_FACTOR = 30.0


class Weights(eqx.Module):
    """Of the network of a learned optimizer; all zero, it is Adam.

    One hidden layer: what is told of each parameter, and what is told of all, enter by
    `local` and `shared`.
    """

    local: Float[Array, "..."]  # hidden local
    shared: Float[Array, "..."]  # hidden shared
    bias: Float[Array, "..."]  # hidden
    out: Float[Array, "..."]  # out hidden
    out_bias: Float[Array, "..."]  # out

    def __call__(
        self, local: Float[Array, "local n"], shared: Float[Array, " shared"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
        """The logarithm of the step's factor, within `log(MAX_FACTOR)` of zero, and
        the shares of the gradient and of the slow momentum, within 1 of zero."""
        cast = jax.tree.map(lambda w: jnp.asarray(w, local.dtype), self)
        common = cast.shared @ shared + cast.bias
        hidden = jax.nn.relu(cast.local @ local + common[:, None])
        factor, gradient, slow = cast.out @ hidden + cast.out_bias[:, None]
        limit = float(np.log(MAX_FACTOR))
        return limit * jnp.tanh(factor / limit), jnp.tanh(gradient), jnp.tanh(slow)


SHAPES = {
    "local": (NUM_HIDDEN, NUM_LOCAL),
    "shared": (NUM_HIDDEN, NUM_SHARED),
    "bias": (NUM_HIDDEN,),
    "out": (NUM_OUT, NUM_HIDDEN),
    "out_bias": (NUM_OUT,),
}


def zero_weights() -> Weights:
    """Those of Adam."""
    return Weights(**{name: jnp.zeros(shape) for name, shape in SHAPES.items()})


def random_weights(key: Key) -> Weights:
    """Where meta-training begins: features at random, and the steps of Adam."""
    scale = (NUM_LOCAL + NUM_SHARED) ** -0.5
    draw = lambda i, name: scale * jr.normal(jr.fold_in(key, i), SHAPES[name])
    zeros = {name: jnp.zeros(SHAPES[name]) for name in ("bias", "out", "out_bias")}
    return Weights(draw(0, "local"), draw(1, "shared"), **zeros)


def check_weights(weights: Any) -> None:
    """Raises unless `weights` are finite [`Weights`][] of the right shapes."""
    if not isinstance(weights, Weights):
        raise TypeError(
            f"`weights` must be `Weights`, got {weights!r} of type "
            f"{type(weights).__name__}. Get them from `meta_train` or `load_weights`."
        )
    for name, shape in SHAPES.items():
        given = getattr(weights, name)
        if given.shape != shape:
            raise ValueError(
                f"`weights.{name}` must have the shape {shape}, got {given.shape}. Get "
                "weights from `meta_train` or `load_weights`."
            )
        if not isinstance(given, Tracer) and not np.isfinite(given).all():
            raise ValueError(
                f"`weights.{name}` holds NaN or an infinity: {given}. Meta-train with "
                "a smaller `learning_rate`."
            )


def local_features(
    grad: Float[Array, " n"],
    fast: Float[Array, " n"],
    slow: Float[Array, " n"],
    size: Float[Array, " n"],
    recent_size: Float[Array, " n"],
    params: Float[Array, " n"],
) -> Float[Array, "local n"]:
    """What the network is told about each parameter.

    None changes with the scale of the loss or with the sign of a parameter. The
    gradient and the two momenta come in units of `size`, the root of the second moment.
    """
    tiny = jnp.finfo(size.dtype).tiny
    squash = lambda x: x / (1 + jnp.abs(x))
    compare = lambda a, b: (a - b) / (a + b + tiny)
    return jnp.stack(
        [
            squash(jnp.abs(grad)),
            squash(jnp.abs(fast)),
            squash(jnp.abs(slow)),
            squash(grad * fast),
            squash(fast * slow),
            compare(recent_size, size),
            compare(size, jnp.mean(size)),
            squash(jnp.abs(params)),
        ]
    )


def shared_features(
    step: Count,
    grad: Float[Array, " n"],
    fast: Float[Array, " n"],
    slow: Float[Array, " n"],
    trend: Scalar,
) -> Float[Array, " shared"]:
    """What the network is told about the run.

    How many steps were taken; the cosines between the gradient and the momenta that it
    has not entered yet, which say whether the steps are too long or too short; and
    `trend`, the change of the loss.
    """
    tiny = jnp.finfo(grad.dtype).tiny
    norm = jnp.linalg.norm

    def cosine(momentum):
        return jnp.vdot(grad, momentum) / (norm(grad) * norm(momentum) + tiny)

    times = jnp.asarray(TIMES, grad.dtype)
    others = jnp.stack([cosine(fast), cosine(slow), trend.astype(grad.dtype)])
    return jnp.concatenate([jnp.tanh(step.astype(grad.dtype) / times), others])
