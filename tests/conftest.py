import os

import equinox as eqx
import jax
import pytest


# Most programs of the tests run a few times only: to compile them fast saves a third of
# the whole. XLA reads this when the first device is asked for.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees what a module compiled: every program holds memory maps, of which Linux
    allows a process 65530; past that, XLA crashed while compiling the next."""
    yield
    jax.clear_caches()
    eqx.clear_caches()
