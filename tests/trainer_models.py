"""What the tests of the documented trainers share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flax import nnx

from opifex.core.training.config import TrainingConfig
from opifex.nnx.bridge import NNXModel


X = jnp.linspace(-1, 1, 20)[:, None]
Y = jnp.sin(3 * X)
X32, Y32 = X.astype(jnp.float32), Y.astype(jnp.float32)

# One for all, so that runs of one shape are compiled once.
ADAM, STILL = optax.adam(1e-3), optax.sgd(0.0)


class Net(nnx.Module):
    def __init__(self, rngs, outputs=1):
        self.first = nnx.Linear(1, 8, rngs=rngs)
        self.last = nnx.Linear(8, outputs, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))


class Line(eqx.Module):
    """The smallest model there is, for what is worked out by hand."""

    weight: jax.Array

    def __call__(self, x):
        return x * self.weight


def line(weight=0.5):
    return Line(jnp.asarray(weight))


def mlp(key=0):
    return eqx.nn.MLP(1, 1, 8, 1, jnp.tanh, key=jr.key(key))


def config(**options):
    defaults = {"num_epochs": 6, "batch_size": 8, "progress": False}
    if "learning_rate" not in options:
        defaults["optimizer"] = ADAM
    return TrainingConfig(**defaults | options)


def arrays(model):
    if isinstance(model, nnx.Module):
        model = NNXModel.of(model)
    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(model, eqx.is_array))]


def assert_same(one, other, tol=0.0):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_allclose(a, b, tol, tol)
