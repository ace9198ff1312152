import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np

from ._best import Best
from ._callback.base import AbstractCallback, CallbackError, Watch
from ._devices import anywhere, on_host, whole
from ._interrupts import Interrupts
from ._memory import advice_on_memory
from ._misc import check_count, tree_copy, tree_where
from ._processes import is_peer_lost, leave
from ._recovery.base import fault_report, faults_of
from ._results import is_fatal, RESULTS
from ._state import StepInfo, TrainingState
from ._validation import Validation


_log = logging.getLogger("opifex")

Chunk = Callable[[TrainingState], tuple[TrainingState, StepInfo]]


class TrainingError(RuntimeError):
    """Training could not go on. Nothing is lost: `state` is the best there was."""

    state: TrainingState

    def __init__(self, message: str, state: TrainingState):
        super().__init__(message)
        self.state = state


def fit(
    chunk: Chunk,
    state: TrainingState,
    *,
    num_chunks: int,
    callbacks: Sequence[AbstractCallback] = (),
    validation: Validation | None = None,
    time_budget: int | float = math.inf,
    throw: bool = True,
) -> TrainingState:
    """Calls `chunk` again and again. The only function that talks to the host.

    SIGINT, SIGTERM and the time budget let the running chunk finish and end the run
    cleanly. How it ended is in `state.progress.result`.

    **Arguments:**

    - `chunk`: a [`Recipe`][], or any function of your own that maps a state to that
        some steps later and their infos. It is compiled once and reused: a second `fit`
        with the same recipe and equal shapes compiles nothing.
    - `state`: where to begin. It is copied, and stays valid.
    - `num_chunks`: how many to run.
    - `callbacks`: progress, history, checkpoints, or your own.
    - `validation`: judges the model; without one, the mean training loss of a chunk
        does.
    - `time_budget`: seconds after which no further chunk is begun.
    - `throw`: whether to raise if no member of the run can go on.

    **Returns:** the last state; or, if the run ended early, the best one.

    **Raises:** `TrainingError`, which carries the best state, if `throw`; and whatever
    is wrong with the arguments, before the first step.
    """
    check_count("num_chunks", num_chunks, least=0)
    if not time_budget > 0:
        raise ValueError(f"`time_budget` must be positive, got {time_budget!r}.")
    state = _visible(tree_copy(state))
    state = _marked(state, RESULTS.successful, keep_fatal=False)
    _check_abstractly(chunk, state, validation)
    deadline = time.monotonic() + time_budget
    best, ending, infos = Best.before(_kept(state), validation), None, None
    with Interrupts() as interrupts:
        watch = Watch(callbacks, state, num_chunks)
        try:
            best = best.or_remembered(watch.recall(state), validation)
            for left in reversed(range(num_chunks)):
                state, infos, best = _advanced(chunk, state, best, validation)
                stop = watch.on_chunk(state, infos, best) and left > 0
                late = time.monotonic() >= deadline and left > 0
                received = interrupts.received is not None
                received, late, stop = anywhere(received, late, stop)
                ending = _ending(state, validation, received, late, stop)
                if ending is not None:
                    state = _marked(state, ending)
                    break
        except BaseException as error:
            if not isinstance(error, CallbackError):
                # The arrays of `state` were given to the chunk that failed.
                state = best.state
            if (failed := _failed(error, chunk, best.state)) is None:
                raise
            raise failed from error
        finally:
            failure = watch.close(_resumable(state, best.state))
    if failure is not None:
        raise _stopped_by(failure, best.state) from failure
    return _handed_back(state if ending is None else best.state, state, infos, throw)


def _advanced(
    chunk: Chunk, state: TrainingState, best: Best, validation: Validation | None
) -> tuple[TrainingState, StepInfo, Best]:
    """The state after one more chunk, its infos on the host, and the best state."""
    state, infos = _compiled(jax.default_backend())(chunk, state)
    if validation is not None and _is_due(validation, state):
        state = _validate(validation, state, infos)
    state, infos = _visible(state), on_host(infos)
    return state, infos, best.or_better(state, infos, validation, _kept)


# Traced once, for the abstract evaluation and for the compiled function alike.
@eqx.filter_jit
def _traced(chunk: Chunk, state: TrainingState) -> tuple[TrainingState, StepInfo]:
    return chunk(state)


@functools.cache
def _options(backend: str) -> dict[str, Any]:
    if backend == "cpu" and _is_known(_IN_MEMORY_ORDER):
        # Donation saves nothing there, and undoes this.
        return {"donate": "none", "compiler_options": _IN_MEMORY_ORDER}
    return {"donate": "all-except-first"}


@functools.cache
def _compiled(backend: str) -> Callable:
    # A function of its own, because options are for the outermost only.
    return eqx.filter_jit(
        lambda chunk, state: _traced(chunk, state), **_options(backend)
    )


def _kept(state: TrainingState) -> TrainingState:
    """`state`, as it can be read when chunks have gone on from it."""
    donates = _options(jax.default_backend())["donate"] != "none"
    return tree_copy(state) if donates else state


# XLA's other order on a CPU makes many operations ready at once and shares them out
# over threads, which doubles the CPU time of small networks and hardly saves any.
_IN_MEMORY_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def _is_known(options: dict[str, str]) -> bool:
    """Whether this XLA has such options; they come and go with its versions."""
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@eqx.filter_jit
def _validate(
    validation: Validation, state: TrainingState, infos: StepInfo
) -> TrainingState:
    return _each(validation, state)(state, infos)


def _failed(
    error: BaseException, chunk: Chunk, best: TrainingState
) -> TrainingError | None:
    """What to raise in place of `error`, if anything. Does not return where another
    process was lost, by which `error` came about."""
    cause = error.__cause__ if isinstance(error, CallbackError) else error
    if cause is not None and is_peer_lost(cause):
        leave(cause)
    if isinstance(error, CallbackError):
        return _stopped_by(error, best)
    if not isinstance(error, Exception):
        return None
    what = advice_on_memory(error, chunk, best)
    what = what or f"A chunk failed with {type(error).__name__}, see above."
    lost = "Nothing is lost: this error carries the best `state`; go on from there."
    return TrainingError(f"{what} {lost}", best)


def _stopped_by(error: CallbackError, best: TrainingState) -> TrainingError:
    message = f"The run was stopped. {error} This error carries the best `state`."
    return TrainingError(message, best)


def _each(function: Callable, state: TrainingState) -> Callable:
    """`function`, over the members if `state` is that of an ensemble."""
    return eqx.filter_vmap(function) if state.step.ndim else function


def _is_due(validation: Validation, state: TrainingState) -> bool:
    return int(np.max(state.progress.epoch)) % validation.every == 0


def _check_abstractly(chunk, state, validation) -> None:
    """One evaluation without arithmetic of all that will run on the device."""
    result = eqx.filter_eval_shape(_traced, chunk, state)
    described = isinstance(result, tuple) and len(result) == 2
    if not described or not isinstance(result[1], StepInfo):
        raise TypeError(
            "`chunk` must map a `TrainingState` to the next one and a `StepInfo`, got "
            f"{type(result).__name__}."
        )
    if validation is not None:
        eqx.filter_eval_shape(_validate, validation, *result)


def _visible(state: TrainingState) -> TrainingState:
    """`state`, of which every process can see how far it is, and how well it went."""
    if jax.process_count() == 1:
        return state
    seen = lambda s: (s.step, s.progress, faults_of(s))
    where = lambda s: tuple(part for part in seen(s) if part is not None)
    return eqx.tree_at(where, state, whole(where(state)))


def _ending(
    state: TrainingState,
    validation: Validation | None,
    received: bool,
    late: bool,
    stop: bool,
) -> RESULTS | None:
    """Why the run ends here, if it does."""
    if np.all(is_fatal(state.progress.result)):
        return state.progress.result
    if received:
        return RESULTS.interrupted
    patience = math.inf if validation is None else validation.patience
    if np.all(np.asarray(state.progress.plateau_count) >= patience):
        return RESULTS.plateaued
    if late:
        return RESULTS.time_budget_spent
    return RESULTS.stopped if stop else None


def _marked(
    state: TrainingState, result: RESULTS, keep_fatal: bool = True
) -> TrainingState:
    """`state` with `result`, except for the members that failed on their own."""
    own = state.progress.result
    change = ~(is_fatal(own) & keep_fatal)
    result = tree_where(change, result, own)
    return eqx.tree_at(lambda s: s.progress.result, state, result)


def _resumable(state: TrainingState, best: TrainingState) -> TrainingState:
    """`state`, or `best` in its place if every member failed: a checkpoint of lost
    parameters would be of no use."""
    if not np.all(is_fatal(state.progress.result)):
        return state
    return eqx.tree_at(lambda s: s.progress.result, best, state.progress.result)


def _handed_back(
    state: TrainingState, last: TrainingState, infos: StepInfo | None, throw: bool
) -> TrainingState:
    """`state`, which may be an earlier one, with what became of the run in the end."""
    state = eqx.tree_at(lambda s: s.progress.result, state, last.progress.result)
    fatal = np.asarray(is_fatal(last.progress.result))
    if fatal.all() and throw:
        raise TrainingError(_obituary(last, infos), state)
    if fatal.any():
        _log.warning("Members %s failed; the others are sound.", np.flatnonzero(fatal))
    return state


def _obituary(last: TrainingState, infos: StepInfo | None) -> str:
    """The faults of the run, or of its first member, and the remedy."""
    first = lambda x: x[0] if eqx.is_array(x) else x
    member = jtu.tree_map(first, last) if last.step.ndim else last
    report = fault_report(member, [] if infos is None else list(infos.terms))
    faults = {name: value for name, value in report.items() if value}
    return (f"Faults: {faults}. " if faults else "") + RESULTS[member.progress.result]
