"""A run of several processes, which JAX makes one program."""

import logging
import os
import sys
from typing import NoReturn

import jax
from jax.experimental import multihost_utils


# EX_TEMPFAIL of sysexits.h, on which launchers start again.
EXIT_PEER_LOST = 75


def join_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of several that run one program on all their devices.

    To be called before JAX is used for anything. Without arguments the settings are
    those of the cluster (Slurm, Open MPI, Kubernetes, cloud TPUs), if JAX knows it.

    **Arguments:**

    - `coordinator`: `HOST:PORT` of the first process, the same for all.
    - `num_processes`: how many there are.
    - `process_id`: which of them this is, from 0.

    **Raises:** `ValueError` if only some of the arguments are given, or neither they
    nor a cluster say who takes part; `RuntimeError` if JAX was used already, or not all
    processes came in time.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"`{missing[0]}` is missing: give all of {list(given)}, or none of them "
            "where JAX knows the cluster."
        )
    # Between CPUs; other devices take no notice.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise type(error)(
            f"`jax.distributed.initialize` failed with {given}: {error}"
        ) from error


def is_first() -> bool:
    """Whether this is the process that prints and writes, of all there are."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when all processes have come to `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def is_peer_lost(error: BaseException) -> bool:
    """Whether `error` can have come from another process of this run."""
    if jax.process_count() == 1:
        return False
    # What Gloo has to say comes as either, by where in JAX it is noticed.
    of_gloo = isinstance(error, ValueError) and "Gloo" in str(error)
    return of_gloo or isinstance(error, jax.errors.JaxRuntimeError)


def leave(error: BaseException) -> NoReturn:
    """Ends this process at once, since another one is lost.

    A normal end would wait for the lost one, for minutes. What is in memory cannot be
    saved, as parts of it were elsewhere: the run goes on from its last checkpoint.
    """
    print(
        f"opifex: process {jax.process_index()} of {jax.process_count()} ends with code"
        f" {EXIT_PEER_LOST}, since another one was lost or failed: start all of them "
        f"again to go on from the last checkpoint.\n({str(error)[:500]})",
        file=sys.stderr,
    )
    end(EXIT_PEER_LOST)


def end(code: int) -> NoReturn:
    """Ends this process without waiting for the others, who cannot do without it."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
