"""A run that is cheap to start again and again."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

import opifex as opx
from opifex._manifest import digest, leaves_of


STEPS = 5  # a chunk


def make():
    """A recipe, and the state it begins with."""
    x = jnp.linspace(-1, 1, 32)[:, None]
    sampler = opx.Minibatch(x, jnp.sin(3 * x), 8)
    recipe = opx.Recipe(opx.Supervised(), optax.adam(1e-3), sampler, steps=STEPS)
    model = eqx.nn.MLP(1, 1, 8, 1, jnp.tanh, key=jr.key(0))
    return recipe, recipe.init(model, key=jr.key(1))


def digest_of(state) -> str:
    return digest(leaves_of(state))


def use_cache(folder: Path) -> None:
    """Programs that were compiled once are read from `folder` from then on."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
