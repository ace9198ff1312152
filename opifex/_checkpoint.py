import dataclasses
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ._best import Best
from ._custom_types import Model
from ._layout import packed
from ._lock import DirectoryLock
from ._manifest import (
    CheckpointError as CheckpointError,
    ConfigurationMismatch as ConfigurationMismatch,
    CorruptCheckpoint as CorruptCheckpoint,
    leaves_of,
    make_manifest,
    TemplateMismatch as TemplateMismatch,
)
from ._restore import (
    best_step as best_step,
    note_of,
    open_manager,
    read_best,
    read_step,
    restore as restore,
    restore_from,
    step_of,
    stored_losses,
)
from ._state import TrainingState


_log = logging.getLogger("opifex")

# What Orbax calls a checkpoint before all of it is there.
_UNFINISHED = "*.orbax-checkpoint-tmp"

# Seconds for which the threads of a failed save are waited for.
_PATIENCE = 10.0


class Store:
    """The checkpoints of one run in one directory, written and read by Orbax.

    A checkpoint is every array of the state and a manifest: the path, dtype and shape
    of each array, a digest of them all, the configuration of the run, and where it ran.
    It is believed only if all of that fits.

    Where there are several processes, all must call the same methods in the same order.
    The first of them holds the lock and writes the manifest.

    **Arguments:**

    - `directory`: made if it is not there.
    - `keep`: how many of the latest checkpoints stay.
    - `keep_best`: how many of those with the lowest loss stay, beside them.
    - `asynchronous`: whether they are written in the background. Otherwise `save`
        returns when all is on the disk.
    - `config`: of the run, as plain JSON. It is stored, and a checkpoint with another
        is refused.

    **Raises:** `OSError` if the directory cannot be written; `BlockingIOError` if
    another process, or another store of this one, is writing to it.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int = 3,
        keep_best: int = 0,
        asynchronous: bool = True,
        config: Mapping[str, Any] | None = None,
    ):
        self.directory = Path(directory).absolute()
        self._asynchronous, self._config = asynchronous, config
        self._losses: dict[int, float] = {}
        self._lock = _lock(self.directory)
        try:
            self._sweep()
            self._manager = open_manager(
                self.directory,
                ocp.CheckpointManagerOptions(
                    preservation_policy=_Preservation(keep, keep_best, self._losses),
                    create=False,
                    async_options=ocp.AsyncOptions(
                        # Called before a finished checkpoint gets its name.
                        post_finalization_callback=lambda: _sync(self.directory)
                    ),
                ),
            )
            if keep_best:
                self._losses.update(stored_losses(self.directory, self._all_steps()))
        except BaseException:
            self._release()
            raise

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return max(self._all_steps(), default=None)

    def _all_steps(self) -> list[int]:
        return list(self._manager.all_steps())

    def save(
        self,
        state: TrainingState,
        *,
        loss: float | None = None,
        best: Best | None = None,
    ) -> None:
        """Writes `state`; what goes wrong in the background shows at the next call.

        **Arguments:**

        - `state`: of a later step than every checkpoint so far.
        - `loss`: by which `keep_best` judges it.
        - `best`: of the run until then, which `recall` gives back.
        """
        self.check()
        step, latest = step_of(state), self.latest
        if latest is not None and latest >= step:
            raise CheckpointError(
                f"The checkpoint of step {step} was not written to {self.directory}: "
                f"there is one of step {latest} already."
            )
        loss = None if loss is None or not math.isfinite(loss) else float(loss)
        try:
            self._write(state, loss, best)
        except Exception as error:  # of many kinds
            raise self._failure(error) from error

    def _write(
        self, state: TrainingState, loss: float | None, best: Best | None
    ) -> None:
        step, leaves, arrays = step_of(state), leaves_of(state), {}
        if best is not None and not np.array_equal(best.state.step, state.step):
            arrays = {"best": ocp.args.StandardSave(packed(leaves_of(best.state)))}
        note = None if best is None else note_of(best, apart=bool(arrays))
        manifest = make_manifest(step, leaves, self._config, loss, note)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(packed(leaves)),
            manifest=ocp.args.JsonSave(manifest),
            **arrays,
        )
        if loss is not None:
            self._losses[step] = loss
        if not self._manager.save(step, args=items, force=True):
            raise RuntimeError(f"Orbax refused step {step}")
        if not self._asynchronous:
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises [`CheckpointError`][] if what was written in the background failed."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything is on the disk; raises as `check` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> CheckpointError:
        _join_writers()
        self._sweep()  # it may be what fills the disk
        self._manager.reload()
        return CheckpointError(
            f"A checkpoint could not be written to {self.directory}: "
            f"{type(error).__name__}: {str(error)[:300]}. The latest on the disk is of "
            f"step {self.latest}. Free the disk or repair the directory, and resume."
        )

    def _sweep(self) -> None:
        """Removes what was not finished. Orbax would do so in the background, and not
        be done when the directory is closed again."""
        if self._lock is None:
            return
        for unfinished in self.directory.glob(_UNFINISHED):
            shutil.rmtree(unfinished, ignore_errors=True)

    def restore(
        self, like: TrainingState[Model], *, step: int | None = None
    ) -> TrainingState[Model]:
        """See [`restore`][]."""
        return restore_from(self._manager, self.directory, like, self._config, step)

    def recall(self, state: TrainingState) -> Best | None:
        """What was saved as the best so far with the checkpoint that is `state`; `None`
        if there is none that can be read."""
        if step_of(state) not in self._all_steps():
            return None
        return read_best(self._manager, self.directory, state)

    def set_aside(self, like: TrainingState) -> None:
        """Renames the damaged checkpoints that are newer than `like`, which was read in
        their place, so that their steps can be written again.

        **Raises:** `ValueError` if one of them is sound.
        """
        for step in sorted(self._all_steps(), reverse=True):
            if step <= step_of(like):
                continue
            try:
                read_step(self._manager, self.directory, step, like, None)
            except (TemplateMismatch, ConfigurationMismatch):
                pass
            except Exception as error:
                _set_aside(self.directory, step, error)
                continue
            raise ValueError(
                f"`directory` {str(self.directory)!r} holds a checkpoint of step {step}"
                f", and the run begins at step {step_of(like)}. Restore it first, or "
                "choose another directory."
            )
        self._manager.reload()

    def close(self) -> None:
        """Waits until everything is on the disk, and lets another write."""
        try:
            self.wait()
        finally:
            try:
                self._manager.close()
            finally:
                self._sweep()
                self._release()
        _sync_folder(self.directory)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


@dataclasses.dataclass
class _Preservation:
    """Which checkpoints stay, for Orbax: the latest, and those of the lowest losses."""

    latest: int
    best: int
    losses: Mapping[int, float]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = sorted(info.step for info in checkpoints)
        known = sorted(set(steps) & self.losses.keys(), key=self.losses.__getitem__)
        stay = {*steps[-self.latest :], *known[: self.best]}
        return [info.step in stay for info in checkpoints]


def _join_writers() -> None:
    """Returns when no thread of Orbax writes any more: where one fails, Orbax leaves
    the others running, which would make anew what is removed."""
    end = time.monotonic() + _PATIENCE
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Theirs would raise what the thread failed with.
            threading.Thread.join(thread, max(end - time.monotonic(), 0))


def _lock(directory: Path) -> DirectoryLock | None:
    """The right to write to `directory`, which the first of several processes holds."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return DirectoryLock(directory) if jax.process_index() == 0 else None
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(
            f"`directory` cannot be written: {str(directory)!r} ({error.strerror}). "
            "Choose another, or change its permissions."
        ) from None


def _set_aside(directory: Path, step: int, error: Exception) -> None:
    place = directory / f"damaged-{step}"
    for i in range(1, 1000):
        if not place.exists():
            break
        place = directory / f"damaged-{step}-{i}"
    if jax.process_index() == 0:
        (directory / str(step)).rename(place)
    _log.warning("A damaged checkpoint is now %s: %s", place, str(error)[:300])


def _sync(directory: Path) -> None:
    """Has the files of the checkpoint that is being written reach the disk itself."""
    for path in directory.glob(f"{_UNFINISHED}/**/*"):
        if path.is_dir():
            _sync_folder(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _sync_folder(directory: Path) -> None:
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
