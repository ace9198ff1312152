"""The checkpoints of a cascade: a folder a level, and a note of when it began."""

import json
import os
from importlib import import_module
from pathlib import Path

import numpy as np

from .._callback.base import AbstractCallback
from .._reading import read_json
from .._state import TrainingState


_Directory = str | os.PathLike


def begin(directory: _Directory | None, i: int, state: TrainingState) -> None:
    """Saves the state with which level `i` begins, and then notes that it has begun."""
    if directory is None:
        return
    store = _optional("_checkpoint").Store(_folder(directory, i))
    try:
        if store.latest is None:
            store.save(state)
    finally:
        store.close()
    new = _note(directory, i).with_suffix(".new")
    new.write_text(json.dumps({"epoch": int(np.max(state.progress.epoch))}))
    new.replace(_note(directory, i))


def resume(
    directory: _Directory, i: int, like: TrainingState
) -> tuple[TrainingState, int] | None:
    """The latest state of level `i`, and the epoch at which that began; `None` if it
    has not."""
    if not _note(directory, i).exists():
        return None
    epoch = read_json(_note(directory, i))["epoch"]
    return _optional("_checkpoint").restore(_folder(directory, i), like), epoch


def savers(directory: _Directory | None, i: int, every: int) -> list[AbstractCallback]:
    """The callback that writes the checkpoints of level `i`, if they are wanted."""
    if directory is None:
        return []
    checkpoint = _optional("_callback.checkpoint").Checkpoint
    return [checkpoint(_folder(directory, i), every=every)]


def _optional(name: str):
    """A module that needs the package of checkpoints, which may not be installed."""
    try:
        return import_module(f"..{name}", __package__)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"`directory` needs the package {error.name!r}, which is not installed. "
            "Install it with: pip install 'opifex[checkpoint]'"
        ) from error


def _folder(directory: _Directory, i: int) -> Path:
    return Path(directory) / f"level_{i}"


def _note(directory: _Directory, i: int) -> Path:
    return Path(directory) / f"level_{i}.json"
