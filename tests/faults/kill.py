"""Kills training at random moments, and checks what is left against a run without.

    python -m tests.faults.kill [--kills 100] [--seed 0] [--seconds 3600]

Prints one JSON object last: `kills`, how many of them landed `mid_save`, how often a
state was restored and proved right (`verified_restores`) or `wrong` (an error counts),
how many checkpoints that `save` had accepted were lost at most (`lost_max`; when
synchronous, `lost_max_sync`), and whether all final states are bitwise those of the
uninterrupted run (`finals_equal`, of `finals`). Half of the runs write asynchronously.
Exits with 1 if anything is wrong, or if no kill landed in a save.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import opifex as opx
from opifex._checkpoint import Store
from tests.faults.command import forked, run
from tests.faults.small import digest_of, make, STEPS, use_cache


CHUNKS = 12


def train(folder: Path, asynchronous: bool, say) -> None:
    """Goes on from the newest checkpoint to the end, and says what it does."""
    recipe, state = make()
    store = Store(folder, keep=3, asynchronous=asynchronous)
    if store.latest is not None:
        state = store.restore(state)
        store.set_aside(state)
        say("restored", int(state.step), digest_of(state))
    while int(state.step) < CHUNKS * STEPS:
        state = opx.fit(recipe, state, num_chunks=1)
        step = int(state.step)
        say("saving", step)
        store.save(state)
        say("saved", step)
    store.close()
    say("done", int(state.step), digest_of(state))


def child(folder: Path, asynchronous: bool, cache: Path) -> tuple[int, int]:
    """A process that trains."""

    def job(say):
        use_cache(cache)
        train(folder, asynchronous, say)

    return forked(job)


def follow(pid: int, read: int, delay: float | None) -> tuple[list, bool, int]:
    """What the process said, whether it was killed `delay` seconds after it began to
    save, and its exit status."""
    began, words, rest = None, [], b""
    os.set_blocking(read, False)
    while True:
        try:
            got = os.read(read, 1 << 16)
        except BlockingIOError:
            got = None
        if got == b"":
            break
        if got:
            *lines, rest = (rest + got).split(b"\n")
            words += [json.loads(line) for line in lines]
        if began is None and any(w[0] == "saving" for w in words):
            began = time.monotonic()
        if began is not None and delay is not None:
            if time.monotonic() - began >= delay:
                os.kill(pid, signal.SIGKILL)
                delay = None
        time.sleep(0.001)
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return words, status == -signal.SIGKILL, status


def reference(cache: Path) -> dict[int, str]:
    """The digest after every chunk of a run that nobody kills; in its own process."""

    def job(say):
        use_cache(cache)
        recipe, state = make()
        for _ in range(CHUNKS):
            state = opx.fit(recipe, state, num_chunks=1)
            say(int(state.step), digest_of(state))

    words, _, status = follow(*forked(job), None)
    assert status == 0
    return dict(words)


def campaign(kills: int, seed: int, seconds: float) -> dict:
    rng, end = random.Random(seed), time.monotonic() + seconds
    count = dict.fromkeys(("kills", "mid_save", "verified_restores", "wrong"), 0)
    count |= {"lost_max": 0, "lost_max_sync": 0, "finals": 0, "finals_equal": True}
    with tempfile.TemporaryDirectory() as place:
        cache, folder = Path(place) / "cache", Path(place) / "run"
        right = reference(cache)
        asynchronous, newest = True, 0
        while count["kills"] < kills and time.monotonic() < end:
            pid, read = child(folder, asynchronous, cache)
            words, killed, status = follow(pid, read, rng.uniform(0, 1.0))
            count["kills"] += killed
            count["wrong"] += not killed and status != 0
            found = 0
            for kind, step, *value in words:
                if kind == "restored":
                    found = step
                    count["verified_restores"] += value[0] == right[step]
                    count["wrong"] += value[0] != right[step]
                if kind == "done":
                    count["finals"] += 1
                    count["finals_equal"] &= value[0] == right[step]
            if words:  # killed before it said anything, it shows nothing
                lost = max(newest - found, 0) // STEPS
                name = "lost_max" if asynchronous else "lost_max_sync"
                count[name] = max(count[name], lost)
            saved = [w[1] for w in words if w[0] == "saved"]
            newest = max(saved, default=newest)
            last = [w[0] for w in words][-1:]
            # Asynchronous, it is written for a while after `save` has returned.
            count["mid_save"] += killed and last == ["saving"]
            if words and words[-1][0] == "done":
                shutil.rmtree(folder)
                asynchronous, newest = not asynchronous, 0
    count["finals_equal"] &= count["finals"] > 0
    return count


def failed(count: dict) -> bool:
    bad = count["wrong"] or not count["finals_equal"] or count["lost_max"] > 1
    idle = not count["mid_save"] or not count["verified_restores"]
    return bool(bad or count["lost_max_sync"] or idle)


if __name__ == "__main__":
    sys.exit(run(__doc__, campaign, failed, kills=100))
