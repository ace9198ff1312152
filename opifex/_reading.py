"""Reading files that somebody else may have made: nothing is executed, nothing outside
their folder is read, and no more than a limit of it."""

import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def read_text(path: Path, limit: int = 1 << 24) -> str:
    """The text of a plain file of at most `limit` bytes that is no link."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{str(path)!r} is not a plain file.")
        if status.st_size > limit:
            raise ValueError(
                f"{str(path)!r} has {status.st_size} bytes, more than the {limit} that "
                "such a file may have."
            )
        return file.read(limit + 1)


def read_json(path: Path, limit: int = 1 << 24) -> Any:
    """What is in a JSON file. See [`read_text`][]."""
    return json.loads(read_text(path, limit))


def read_arrays(path: Path, limit: int = 1 << 32) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, of at most `limit` bytes unpacked; no pickles."""
    if path.is_symlink():
        raise ValueError(f"{str(path)!r} is a link, and may lead elsewhere.")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}.") from None
    if size > limit:
        raise ValueError(
            f"{str(path)!r} unpacks to {size} bytes, more than the {limit} that such a "
            "file may have."
        )
    with np.load(path, allow_pickle=False) as data:
        return dict(data)


def check_plain(folder: Path) -> None:
    """Raises unless there are only plain files and folders below `folder`."""
    if folder.is_symlink():
        raise ValueError(f"{str(folder)!r} is a link, and may lead elsewhere.")
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{str(path)!r} is a link or a device, not a plain file.")
