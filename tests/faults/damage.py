"""Damages the newest of three checkpoints at random, and looks at what is restored.

    python -m tests.faults.damage [--mutations 300] [--seed 0] [--seconds 3600]

The checkpoints hold a state, and apart from it the best one until then. Prints one JSON
object last: `mutations`; of these, how many gave either of them not bitwise as it was
saved (`silent`), took more than 30 s (`hangs`), `fell_back` to an
older checkpoint, raised (`errored`), or did not matter (`unharmed`). Exits with 1 if
there were silent ones or hangs, or if none fell back.
"""

import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

import opifex as opx
from opifex._best import Best
from opifex._checkpoint import Store
from tests.faults.command import run
from tests.faults.small import digest_of, make, STEPS


def mutate(path: Path, rng: random.Random) -> str:
    """Damages a file in one of six ways."""
    content = bytearray(path.read_bytes())
    how = rng.choice(["delete", "empty", "cut", "flip", "zero", "append", "flip"])
    at = rng.randrange(max(len(content), 1))
    if how == "delete":
        path.unlink()
        return how
    if how == "empty":
        content = bytearray()
    elif how == "cut":
        content = content[:at]
    elif how == "flip" and content:
        content[at] ^= 1 << rng.randrange(8)
    elif how == "zero":
        content[at:] = bytes(len(content) - at)
    elif how == "append":
        content += rng.randbytes(16)
    path.write_bytes(content)
    return how


class Hang(BaseException):
    """A restore took too long. No `Exception`, which would count as damage."""


def restored(folder: Path, like) -> tuple:
    """What a run would go on from, and the best that it would still know of."""
    with closing(Store(folder)) as store:
        found = store.restore(like)
        best = store.recall(found)
    return found, None if best is None else best.state


def _hang(number, frame):
    raise Hang


def campaign(mutations: int, seed: int, seconds: float) -> dict[str, int]:
    rng, end = random.Random(seed), time.monotonic() + seconds
    names = ("mutations", "silent", "hangs", "fell_back", "errored", "unharmed")
    count: dict[str, int] = dict.fromkeys(names, 0)
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory() as place:
        whole, broken = Path(place) / "whole", Path(place) / "broken"
        recipe, state = make()
        best, right = Best(np.zeros(()), state), {}
        with closing(Store(whole)) as store:
            for _ in range(3):
                state = opx.fit(recipe, state, num_chunks=1)
                store.save(state, best=best)
                right[int(state.step)] = [digest_of(state), digest_of(best.state)]
        while count["mutations"] < mutations and time.monotonic() < end:
            shutil.copytree(whole, broken)
            files = [p for p in (broken / str(3 * STEPS)).rglob("*") if p.is_file()]
            path = rng.choice(sorted(files))
            how = mutate(path, rng)
            count["mutations"] += 1
            signal.alarm(30)
            try:
                found, best = restored(broken, state)
            except Hang:
                count["hangs"] += 1
            except Exception as error:
                count["errored"] += 1
                print(how, path.relative_to(broken), error, file=sys.stderr)
            else:
                step = int(found.step)
                same = [digest_of(found), digest_of(best)] == right.get(step)
                outcome = "unharmed" if step == 3 * STEPS else "fell_back"
                count[outcome if same else "silent"] += 1
            finally:
                signal.alarm(0)
                shutil.rmtree(broken)
    return count


def failed(count: dict[str, int]) -> bool:
    return bool(count["silent"] or count["hangs"] or not count["fell_back"])


if __name__ == "__main__":
    sys.exit(run(__doc__, campaign, failed, mutations=300))
