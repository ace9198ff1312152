import fcntl
import os
from pathlib import Path


class DirectoryLock:
    """Says that this process alone writes to a directory, until it ends or lets go.

    The kernel lets go for a process that is killed. Needs a POSIX system.

    **Raises:** `BlockingIOError` if another holds it; `OSError` if the directory cannot
    be written.
    """

    def __init__(self, directory: Path):
        path = directory / ".lock"
        # A link would have us write to what it points to.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file: int | None = os.open(path, flags, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            owner = os.pread(self._file, 32, 0).decode(errors="replace").strip()
            self.release()
            raise BlockingIOError(
                f"`directory` is being written by another run, process {owner or '?'}: "
                f"{str(directory)!r}. Wait for its end, or choose another directory."
            ) from None
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Lets another write. May be called again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
