"""Data that take long to compute, kept on disk."""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


Arrays = dict[str, np.ndarray]

_log = logging.getLogger("opifex")

# Of the files: to be raised whenever what they hold is computed differently.
VERSION = 1


def cache_folder() -> Path:
    """`$OPIFEX_CACHE`, or `opifex` in `$XDG_CACHE_HOME`, or `~/.cache/opifex`."""
    chosen = os.environ.get("OPIFEX_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opifex"


def cached(name: str, parameters: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """Arrays from the cache, or made now and put there.

    The file is named by everything that they depend on, its format's version included,
    and holds a digest of them: one that is damaged is made again, with a warning. It
    appears complete or not at all, so several programs may share a folder. Without a
    folder that can be written, arrays are made every time, with a warning.

    **Arguments:**

    - `name`: what the data are.
    - `parameters`: all that they depend on, the seed included.
    - `make`: computes them.
    """
    described = json.dumps(
        {"name": name, "version": VERSION} | parameters, sort_keys=True
    )
    values = "-".join(f"{key}{value}" for key, value in sorted(parameters.items()))
    path = cache_folder() / f"{name}-{values}-v{VERSION}.npz"
    found = _read(path, described)
    if found is None:
        found = make()
        _write(path, described, found)
    return found


def _digest(described: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(described.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(path: Path, described: str) -> Arrays | None:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
        digest = str(arrays.pop("digest"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s cannot be read (%s) and is made again.", path, error)
        return None
    if digest != _digest(described, arrays):
        _log.warning("%s is damaged and is made again.", path)
        return None
    return arrays


def _write(path: Path, described: str, arrays: Arrays) -> None:
    digest = np.array(_digest(described, arrays))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                np.savez(file, allow_pickle=False, digest=digest, **arrays)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        _log.warning(
            "Data are not kept: %s. Let `OPIFEX_CACHE` name a folder that can be "
            "written.",
            error,
        )
