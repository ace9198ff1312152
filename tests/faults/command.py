"""What the campaigns have in common: how they are called, and processes to kill."""

import argparse
import json
import os
import traceback
from collections.abc import Callable
from typing import Any


def run(
    document: str | None, campaign: Callable[..., dict], failed: Callable, **defaults
) -> int:
    """Runs `campaign` as the command line says, and prints what it counted last.

    **Returns:** the exit status: 1 if `failed` says so of the counts.
    """
    parser = argparse.ArgumentParser(description=str(document).splitlines()[0])
    for name, value in ({"seed": 0, "seconds": 3600.0} | defaults).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    count = campaign(**vars(parser.parse_args()))
    print(json.dumps(count))
    return int(bool(failed(count)))


def forked(job: Callable[[Callable], Any]) -> tuple[int, int]:
    """A process that does `job`, and the end of a pipe with what it says: a list in
    JSON a line. It is forked, so JAX must not have threads yet."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    status = 1
    try:
        os.close(read)
        job(lambda *words: os.write(write, (json.dumps(words) + "\n").encode()))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
