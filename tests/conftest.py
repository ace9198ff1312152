import mmap
import os
import pathlib

import equinox as eqx
import jax
import jaxlib
import pytest


def is_known(flag):
    """Whether this XLA has `flag`; it ends the process over those that it has not."""
    library = pathlib.Path(jaxlib.__file__).with_name("libjax_common.so")
    if not library.exists():
        return False
    with open(library, "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"\0" + flag.encode() + b"\0") >= 0


# Most programs of the tests run a few times only: to compile them fast saves more than
# half of the whole. XLA reads this when the first device is asked for. Cut into parts,
# a program may have other last bits where there are other processes, and takes longer.
FLAGS = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}
flags = [f"--{name}={value}" for name, value in FLAGS.items() if is_known(name)]
os.environ.setdefault("XLA_FLAGS", " ".join(flags))

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
