"""Short runs, one after another for a long time, and what they leave behind.

    python -m tests.faults.soak [--seconds 1800] [--seed 0]

One process trains again and again: a run is interrupted by a signal, its newest
checkpoint is damaged, and it is resumed and must end with the bits of the run without.
Meanwhile others are killed and resumed, as in `tests.faults.kill`, whose counts are
printed too. Prints one JSON object last; the growth of the process that lives is that
from the third fifth of its runs to the last (the first two warm up), by the median:
`rss_growth_mb` (of `rss_mb`) and the same a run, `fd_growth` (open files) and
`thread_growth`; and `tmp_growth`, how many files all of them left in the folder for
temporary ones and how many unfinished checkpoints in their own. Exits with 1 if a run
went wrong or anything grew: the memory, by more than 0.2 MB a run, since TensorStore
0.1.86 does not free what it notes of arrays.
"""

import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import opifex as opx
from tests.faults import kill
from tests.faults.command import forked, run
from tests.faults.damage import mutate
from tests.faults.small import digest_of, make, STEPS, use_cache


CHUNKS = 8
MAX_RSS_GROWTH = 0.2  # MB a run


def used() -> tuple[float, int, int]:
    """By this process: resident MB, open files and threads."""
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    files = len(os.listdir("/proc/self/fd"))
    return int(fields["VmRSS"].split()[0]) / 1024, files, int(fields["Threads"])


def one_run(recipe, start, folder: Path, rng: random.Random) -> str:
    """The digest of what a run with all that can happen to it ends with."""
    asynchronous, at = rng.random() < 0.5, rng.randrange(3, CHUNKS)

    def interrupt(infos):
        del infos
        chunks.append(None)
        if len(chunks) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    def go_on(state, *callbacks):
        store = opx.Checkpoint(folder, keep=3, asynchronous=asynchronous)
        left = CHUNKS - int(state.progress.epoch)
        callbacks = [*callbacks, opx.History(folder / "history.csv"), store]
        return opx.fit(recipe, state, num_chunks=left, callbacks=callbacks)

    chunks = []
    go_on(start, opx.Collect(interrupt))
    newest = folder / str(at * STEPS)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    mutate(rng.choice(files), rng)
    state = go_on(opx.restore(folder, start))
    if list(folder.glob("*tmp*")):
        return "unfinished checkpoints"
    shutil.rmtree(folder)
    return digest_of(state)


def live(folder: Path, seed: int, seconds: float, say) -> None:
    """Trains again and again, and says in the end what it used after each run."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    recipe, start = make()
    right, found = digest_of(opx.fit(recipe, start, num_chunks=CHUNKS)), []
    while time.monotonic() < end:
        folder.mkdir()
        found.append((one_run(recipe, start, folder, rng) == right, *used()))
    say(*found)


def growth(values: Sequence[float]) -> float:
    fifth = max(len(values) // 5, 1)
    before, after = values[2 * fifth : 3 * fifth], values[-fifth:]
    return statistics.median(after) - statistics.median(before)


def campaign(seed: int, seconds: float) -> dict:
    with tempfile.TemporaryDirectory() as place:
        folder, temporary = Path(place) / "live", Path(place) / "tmp"
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)

        def job(say):
            use_cache(Path(place) / "cache")
            live(folder, seed, seconds, say)

        pid, read = forked(job)
        files = len(os.listdir("/proc/self/fd"))
        killed = kill.campaign(sys.maxsize, seed, seconds)
        files = len(os.listdir("/proc/self/fd")) - files
        words, _, status = kill.follow(pid, read, None)
        left = [*temporary.iterdir(), *folder.glob("*tmp*")]
    assert status == 0 and words, "the process that trains on and on has failed"
    runs = words[0]
    same, rss, fds, threads = zip(*runs, strict=True)
    return {
        "runs": len(runs),
        "wrong_runs": len(runs) - sum(same),
        "rss_mb": max(rss),
        "rss_growth_mb": growth(rss),
        "rss_growth_mb_a_run": growth(rss) / (2 * max(len(rss) // 5, 1)),
        "fd_growth": max(growth(fds), files),
        "thread_growth": growth(threads),
        "tmp_growth": len(left),
    } | killed


def failed(count: dict) -> bool:
    grew = count["fd_growth"] > 0 or count["thread_growth"] > 0 or count["tmp_growth"]
    grew = grew or count["rss_growth_mb_a_run"] > MAX_RSS_GROWTH
    return bool(grew or count["wrong_runs"] or kill.failed(count))


if __name__ == "__main__":
    sys.exit(run(__doc__, campaign, failed, seconds=1800.0))
