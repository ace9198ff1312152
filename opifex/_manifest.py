"""What is written down beside the arrays of a checkpoint, and how it is judged."""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from ._callback.base import CallbackError


# The first had no digest of the manifest. All are read.
FORMAT = 3
# The first in which arrays are not stored each by itself.
FIRST_PACKED = 3

Leaves = list[tuple[str, Array]]


class CheckpointError(CallbackError):
    """A checkpoint could not be written, or none could be read; the message says why.

    In the middle of a run it ends the run, which still hands back its best state.
    """


class CorruptCheckpoint(CheckpointError):
    """What is on the disk is not what was written."""


class TemplateMismatch(CheckpointError):
    """A sound checkpoint of another model, optimizer or sampler."""


class ConfigurationMismatch(CheckpointError):
    """A sound checkpoint of a run with another configuration."""


def leaves_of(state: PyTree) -> Leaves:
    """The paths and the arrays of `state`."""
    arrays = jtu.tree_leaves_with_path(eqx.filter(state, eqx.is_array))
    return [(jtu.keystr(path), jnp.asarray(x)) for path, x in arrays]


def make_manifest(
    step: int,
    leaves: Leaves,
    config: Mapping[str, Any] | None,
    loss: float | None,
    best: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that is known of a checkpoint without its arrays, as plain JSON.

    **Arguments:**

    - `step`: the number of steps behind it.
    - `leaves`: what is in it.
    - `config`: of the run, if there is one; of plain JSON.
    - `loss`: by which it is compared with others, if any.
    - `best`: its loss for each member, and the digest of its arrays unless it is the
        state itself.
    """
    manifest = {
        "format": FORMAT,
        "step": step,
        "leaves": spec(leaves),
        "sha256": digest(leaves),
        "environment": environment(),
        "config": None if config is None else _plain_json(config),
        "config_sha256": None if config is None else _sha256(config),
        "loss": loss,
        "best": None if best is None else dict(best),
    }
    return manifest | {"manifest_sha256": _sha256(manifest)}


def check_manifest(manifest: Any, step: int) -> None:
    """Raises unless `manifest` is one of step `step`, and whole."""
    if not isinstance(manifest, dict) or manifest.get("step") != step:
        raise CorruptCheckpoint("its manifest is not that of its step")
    found = manifest.get("format", 1)
    if found not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"it has format {found!r}, and this version reads up to {FORMAT}; "
            "use a newer opifex"
        )
    if found == 1:
        return
    rest = {k: v for k, v in manifest.items() if k != "manifest_sha256"}
    if manifest.get("manifest_sha256") != _sha256(rest):
        raise CorruptCheckpoint("its manifest does not match its own digest")


def check_template(manifest: dict[str, Any], leaves: Leaves) -> None:
    """Raises [`TemplateMismatch`][] unless the arrays of `leaves` are those stored."""
    old = manifest.get("format", 1) == 1
    wanted = [leaf for leaf in spec(leaves) if not old or 0 not in leaf[2]]
    have, want = (
        {leaf[0]: leaf[1:] for leaf in s} for s in (manifest["leaves"], wanted)
    )
    show = lambda leaf, none: none if leaf is None else f"{leaf[0]}{leaf[1]}"
    differing = [
        f"{path} is {show(have.get(path), 'missing')}, "
        f"not {show(want.get(path), 'without arrays')}"
        for path in sorted(have.keys() | want.keys())
        if have.get(path) != want.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise TemplateMismatch("; ".join(differing[:8]) + more)


def check_config(manifest: dict[str, Any], config: Mapping[str, Any] | None) -> None:
    """Raises [`ConfigurationMismatch`][] if both have one and they differ."""
    stored = manifest.get("config")
    if stored is None or config is None:
        return
    wanted = _plain_json(config)
    if differing := _differences(stored, wanted):
        raise ConfigurationMismatch("; ".join(differing))


def changes_of_environment(manifest: dict[str, Any]) -> list[str]:
    """What differs between where a checkpoint was written and here."""
    stored = manifest.get("environment")
    if not isinstance(stored, dict):
        return ["what wrote it is unknown (format 1)"]
    return _differences(stored, _plain_json(environment()))


def _differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"`{name}` was {stored.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(stored.keys() | now.keys())
        if stored.get(name) != now.get(name)
    ]


def spec(leaves: Leaves) -> list[list]:
    """The path, dtype (of a key: its kind) and shape of each."""
    return [[path, str(x.dtype), list(x.shape)] for path, x in leaves]


def digest(leaves: Leaves) -> str:
    """Of the paths, dtypes, shapes and bytes of all arrays that have elements."""
    total = hashlib.sha256()
    for path, x in leaves:
        if x.size == 0:
            continue  # there is nothing to restore
        array = host_array(x)
        total.update(json.dumps([path, str(x.dtype), array.shape]).encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def host_array(x: Array) -> np.ndarray:
    """The elements of an array, or the data of keys; also if other processes hold some
    of them, who must ask at the same time."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jr.key_data(x)
    if not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def environment() -> dict[str, Any]:
    """What the last bits of a result depend on, beside the program."""
    device = jax.devices()[0]
    settings: Any = jax.config  # its attributes are made at run time
    return _of_process() | {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": _num_cores(),
        "x64": bool(settings.jax_enable_x64),
        "matmul_precision": settings.jax_default_matmul_precision,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


@functools.cache
def _of_process() -> dict[str, Any]:
    """What cannot change while the program runs."""
    packages = ("opifex", "jax", "jaxlib", "equinox", "optax", "orbax-checkpoint")
    found = {f"version of {name}": _version(name) for name in packages}
    return found | {"source": _revision(), "instruction_set": _instruction_set()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str:
    """Of the code of opifex: a digest of its sources, committed or not."""
    total, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()[:16]


# Those by which XLA and its libraries choose how they compute.
_SIMD = {"avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni"}
_SIMD |= {"amx_tile", "amx_bf16", "asimd", "sve", "sve2", "bf16"}


def _instruction_set() -> list[str]:
    """The vector instructions of the processor, where Linux tells them."""
    path, found = Path("/proc/cpuinfo"), set()
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            found = _SIMD & set(flags.split())
            break
    return [platform.machine(), *sorted(found)]


def _num_cores() -> int | None:
    """Cores that this process may use."""
    if platform.system() == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _plain_json(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value)))


def _sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(value), sort_keys=True).encode()).hexdigest()
