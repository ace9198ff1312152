import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from ._custom_types import Model
from ._state import TrainingState


_log = logging.getLogger("opifex")

_Leaves = list[tuple[str, Array]]


class CheckpointError(RuntimeError):
    """No checkpoint of a directory could be used; the message says why, one by one."""


class Store:
    """The checkpoints of one run in one directory, written and read by Orbax.

    A checkpoint is every array of the state, with the path, dtype and shape of each and
    a digest of them all. It is believed only if all of that fits.

    **Arguments:**

    - `directory`: made if it is not there.
    - `keep`: how many of the latest checkpoints stay.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
        self.directory = Path(directory).absolute()
        _check_writable(self.directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainingState) -> None:
        """Writes `state`, in the background. An error shows at the next call."""
        self._manager.check_for_errors()
        step = _step_of(state)
        leaves = _leaves(state)
        manifest = {"step": step, "leaves": _spec(leaves), "sha256": _digest(leaves)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_named(leaves)),
            manifest=ocp.args.JsonSave(manifest),
        )
        if not self._manager.save(step, args=items, force=True):
            raise CheckpointError(
                f"The checkpoint of step {step} was not written to {self.directory}: "
                f"there is one of step {self.latest} already."
            )

    def restore(self, like: TrainingState[Model]) -> TrainingState[Model]:
        """The newest state that verifies, in the structure of `like`.

        **Raises:** [`CheckpointError`][] if there is none, naming each that was
        rejected; at once if the newest was made for another problem, naming the arrays.
        """
        rejected = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._restore_step(step, like)
            except _Mismatch as error:
                raise CheckpointError(
                    f"The checkpoint of step {step} in {self.directory} is of another "
                    f"model, optimizer or sampler than the state to restore: {error}."
                ) from None
            except Exception as error:  # Orbax raises many kinds at a damaged file.
                rejected.append(f"step {step}: {type(error).__name__}: {error}"[:300])
                continue
            for reason in rejected:
                _log.warning("A damaged checkpoint was passed over: %s", reason)
            return state
        why = "; ".join(rejected) or "there is none"
        raise CheckpointError(f"No usable checkpoint in {self.directory}: {why}.")

    def _restore_step(self, step: int, like: TrainingState) -> TrainingState:
        manifest = self._read(step, manifest=ocp.args.JsonRestore())["manifest"]
        leaves = _leaves(like)
        _check_spec(manifest["leaves"], _spec(leaves))
        template = jtu.tree_map(ocp.utils.to_shape_dtype_struct, _named(leaves))
        named = self._read(step, state=ocp.args.StandardRestore(template))["state"]
        restored = [(path, named[_name(i)]) for i, (path, _) in enumerate(leaves)]
        if manifest["step"] != step or manifest["sha256"] != _digest(restored):
            raise ValueError("its contents do not match their digest")
        return _filled(like, [array for _, array in restored])

    def _read(self, step: int, **items) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore(
    directory: str | os.PathLike, like: TrainingState[Model]
) -> TrainingState[Model]:
    """The newest checkpoint of `directory` that verifies.

    **Arguments:**

    - `directory`: as given to [`Checkpoint`][].
    - `like`: a state of the same recipe and model, as from `recipe.init`.
    """
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"`directory` does not exist: {str(directory)!r}.")
    store = Store(directory)
    try:
        return store.restore(like)
    finally:
        store.close()


class _Mismatch(ValueError):
    """A checkpoint and the state to restore are of different structure."""


def _step_of(state: TrainingState) -> int:
    return int(np.max(state.step))


def _leaves(state: PyTree) -> _Leaves:
    """Paths and arrays; those without elements, which Orbax refuses, left out."""
    arrays = jtu.tree_leaves_with_path(eqx.filter(state, eqx.is_array))
    return [(jtu.keystr(path), jnp.asarray(x)) for path, x in arrays if x.size]


def _filled(like: PyTree, arrays: list[Array]) -> PyTree:
    dynamic, static = eqx.partition(like, eqx.is_array)
    left = iter(arrays)
    dynamic = jtu.tree_map(lambda x: next(left) if x.size else x, dynamic)
    return eqx.combine(dynamic, static)


def _name(i: int) -> str:
    return f"{i:05d}"


def _named(leaves: _Leaves) -> dict[str, Array]:
    return {_name(i): array for i, (_, array) in enumerate(leaves)}


def _plain(x: Array) -> tuple[str, np.ndarray]:
    """The dtype of an array, or the kind of key it is, and its bytes."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return str(x.dtype), np.asarray(jr.key_data(x))
    return str(x.dtype), np.asarray(x)


def _spec(leaves: _Leaves) -> list[list]:
    return [[path, str(x.dtype), list(x.shape)] for path, x in leaves]


def _digest(leaves: _Leaves) -> str:
    total = hashlib.sha256()
    for path, x in leaves:
        dtype, array = _plain(x)
        total.update(json.dumps([path, dtype, array.shape]).encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _check_spec(stored: list[list], wanted: list[list]) -> None:
    have, want = ({leaf[0]: leaf[1:] for leaf in s} for s in (stored, wanted))
    differing = [
        f"{path} is {have.get(path, 'missing')}, not {want.get(path, 'wanted')}"
        for path in sorted(have.keys() | want.keys())
        if have.get(path) != want.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise _Mismatch("; ".join(differing[:5]) + more)


def _check_writable(directory: Path) -> None:
    probe = directory / f".writable.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"`directory` cannot be written: {str(directory)!r} ({error.strerror}). "
            "Choose another, or change its permissions."
        ) from None
