"""Reading checkpoints, none of which is believed before it verifies."""

import functools
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from ._best import Best
from ._custom_types import Model
from ._layout import template, unpacked
from ._manifest import (
    changes_of_environment,
    check_config,
    check_manifest,
    check_template,
    CheckpointError,
    ConfigurationMismatch,
    CorruptCheckpoint,
    digest,
    FIRST_PACKED,
    Leaves,
    leaves_of,
    spec,
    TemplateMismatch,
)
from ._reading import check_plain, read_json
from ._state import TrainingState


_log = logging.getLogger("opifex")

# A manifest has about 100 bytes an array.
_MAX_MANIFEST = 1 << 26


def restore(
    directory: str | os.PathLike,
    like: TrainingState[Model],
    *,
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> TrainingState[Model]:
    """The newest checkpoint of `directory` that verifies.

    Nothing in the directory is changed, so it may be read-only, or be written to by a
    run at the same time. Nothing that is read is executed, links are not followed, and
    no array is read that is larger than that of `like`.

    **Arguments:**

    - `directory`: as given to [`Checkpoint`][].
    - `like`: a state of the same recipe and model, as from `recipe.init`.
    - `step`: the one to read; without it, the newest that verifies.
    - `config`: of the run; as given to [`Checkpoint`][].

    **Raises:** `FileNotFoundError` if there is no such directory or step;
    `TemplateMismatch`, naming the arrays, and `ConfigurationMismatch`, naming the
    fields, if the newest sound one is of something else; `CorruptCheckpoint`, naming
    each, if none is sound.
    """
    folder = Path(directory).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"`directory` does not exist: {str(directory)!r}.")
    # Without `read_only`, of which Orbax warns each time.
    manager = open_manager(folder, ocp.CheckpointManagerOptions(create=False))
    try:
        return restore_from(manager, folder, like, config, step)
    finally:
        manager.close()


def open_manager(
    folder: Path, options: ocp.CheckpointManagerOptions
) -> ocp.CheckpointManager:
    """Orbax's view of `folder`, which knows what is in a checkpoint."""
    handlers = {
        "state": ocp.StandardCheckpointHandler(),
        "best": ocp.StandardCheckpointHandler(),
        "manifest": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def best_step(directory: str | os.PathLike) -> int | None:
    """The step of the checkpoint with the lowest loss; `None` if none has one.

    **Arguments:**

    - `directory`: as given to [`Checkpoint`][].
    """
    folder = Path(directory).absolute()
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    losses = stored_losses(folder, steps)
    return min(sorted(losses), key=losses.__getitem__, default=None)


def restore_from(manager, folder, like, config, only) -> Any:
    """The newest state that verifies, or that of the step `only`."""
    steps = sorted(manager.all_steps(), reverse=True)
    if only is not None and only not in steps:
        raise FileNotFoundError(
            f"`step` = {only!r} has no checkpoint in {str(folder)!r}; there are "
            f"{sorted(steps)}."
        )
    rejected = []
    for step in steps if only is None else [only]:
        try:
            state, _, manifest = read_step(manager, folder, step, like, config)
        except TemplateMismatch as error:
            raise TemplateMismatch(
                f"The checkpoint of step {step} in {folder} is of another model, "
                f"optimizer or sampler than the state to restore: {error}."
            ) from None
        except ConfigurationMismatch as error:
            raise ConfigurationMismatch(
                f"The checkpoint of step {step} in {folder} is of another run: {error}."
                " Resume with its own configuration, or choose another directory."
            ) from None
        except Exception as error:  # Orbax raises many kinds at a damaged file.
            rejected.append(f"step {step}: {type(error).__name__}: {error}"[:300])
            continue
        for reason in rejected:
            _log.warning("A damaged checkpoint was passed over: %s", reason)
        if changes := changes_of_environment(manifest):
            _log.warning(
                "The checkpoint of step %d was written elsewhere, so the last bits of "
                "what follows may differ: %s.",
                *(step, "; ".join(changes)),
            )
        return state
    why = "; ".join(rejected) or "there is none"
    raise CorruptCheckpoint(f"No usable checkpoint in {folder}: {why}.")


def read_step(
    manager: ocp.CheckpointManager,
    folder: Path,
    step: int,
    like: TrainingState,
    config: Mapping[str, Any] | None,
) -> tuple[TrainingState, Best | None, dict[str, Any]]:
    """The state of one step, the best so far and the manifest, if all of it is as it
    was written."""
    check_plain(folder / str(step))
    manifest = _read_manifest(folder, step)
    check_manifest(manifest, step)
    check_config(manifest, config)
    check_template(manifest, leaves_of(like))
    packs = manifest.get("format", 1) >= FIRST_PACKED
    read = functools.partial(_read_item, manager, step, leaves_of(like), packs)
    state = _filled(like, read("state", manifest["sha256"]))
    if (note := manifest.get("best")) is None:
        return state, None, manifest
    best, sha256 = state, note["sha256"]
    if sha256 is not None:
        best = _filled(like, read("best", sha256))
    loss = np.array([math.inf if x is None else x for x in note["loss"]])
    return state, Best(loss.reshape(like.step.shape), best), manifest


def _read_item(
    manager, step: int, leaves: Leaves, packs: bool, item: str, sha256: str
) -> list[Array]:
    """The arrays of one of the states of a checkpoint, if they have that digest."""
    wanted = template(leaves, packs=packs)
    _check_sizes(manager.item_metadata(step)[item], wanted)
    items = ocp.args.Composite(**{item: ocp.args.StandardRestore(wanted)})
    stored = manager.restore(step, args=items)[item]
    arrays = unpacked(stored, leaves, packs=packs)
    restored = [(path, x) for (path, _), x in zip(leaves, arrays, strict=True)]
    if spec(restored) != spec(leaves) or digest(restored) != sha256:
        raise CorruptCheckpoint(f"the arrays of its {item} do not match their digest")
    return arrays


def read_best(
    manager: ocp.CheckpointManager, folder: Path, state: TrainingState
) -> Best | None:
    """The best so far of the checkpoint that has the model of `state`."""
    try:
        found, best, _ = read_step(manager, folder, step_of(state), state, None)
    except Exception as error:  # Orbax raises many kinds at a damaged file.
        _log.warning(
            "The best state before step %d is not known, since its checkpoint cannot "
            "be read: %s",
            *(step_of(state), str(error)[:300]),
        )
        return None
    same = digest(leaves_of(found.model)) == digest(leaves_of(state.model))
    return best if same else None


def note_of(best: Best, *, apart: bool) -> dict[str, Any]:
    """What a manifest says of the best state, which is `apart` from that of its step or
    the same."""
    losses = [float(x) if np.isfinite(x) else None for x in np.ravel(best.loss)]
    return {
        "loss": losses,
        "sha256": digest(leaves_of(best.state)) if apart else None,
    }


def _read_manifest(folder: Path, step: int) -> Any:
    return read_json(folder / str(step) / "manifest" / "metadata", _MAX_MANIFEST)


def _check_sizes(stored: Any, template: dict[str, Any]) -> None:
    """Raises if reading would allocate more than the arrays of `template` have."""
    for name, x in template.items():
        found = stored[name]
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        shape = found.shape[: len(x.shape)] if is_key else found.shape
        chunk = found.storage.chunk_shape if found.storage else None
        if shape != x.shape or math.prod(chunk or ()) > max(math.prod(found.shape), 1):
            raise CorruptCheckpoint(f"an array is stored as {found.shape}, in {chunk}")


def stored_losses(folder: Path, steps: list[int]) -> dict[int, float]:
    """The losses of those checkpoints whose manifest is whole and has one."""
    losses = {}
    for step in steps:
        try:
            manifest = _read_manifest(folder, step)
            check_manifest(manifest, step)
        except (OSError, ValueError, CheckpointError) as error:
            _log.warning("The checkpoint of step %d has no manifest: %s", step, error)
            continue
        if manifest.get("loss") is not None:
            losses[step] = manifest["loss"]
    return losses


def step_of(state: TrainingState) -> int:
    return int(np.max(state.step))


def _filled(like: PyTree, arrays: list[Array]) -> PyTree:
    dynamic, static = eqx.partition(like, eqx.is_array)
    left = iter(arrays)
    return eqx.combine(jtu.tree_map(lambda x: next(left), dynamic), static)
