"""A run of the command line: from its options to the files in its folder."""

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._callback.base import AbstractCallback
from .._callback.checkpoint import Checkpoint
from .._callback.history import History
from .._callback.on_first import OnFirst
from .._callback.progress import ProgressBar
from .._checkpoint import restore
from .._custom_types import Key
from .._devices import local, on_host, replicated, shared_out
from .._ensemble import Ensemble, ensemble
from .._fit import Chunk, fit, TrainingError
from .._misc import check_count
from .._processes import is_first
from .._recipe import Recipe
from .._results import RESULT_NAMES
from .._sampler.data_parallel import DataParallel
from .._state import TrainingState
from .._validation import Validation
from .base import Benchmark
from .best import Best, held_out
from .dissociation import DissociationBenchmark, judge_dissociation
from .judge import judge
from .operators.base import OperatorBenchmark
from .operators.judge import judge_operator
from .recipe import AnyBenchmark, find_benchmark, make_recipe


# Steps between two resamplings, checkpoints and movements of the progress bar.
CHUNK = 250

# The ways to end after which `resume` goes on.
_RESUMABLE = {"interrupted", "time_budget_spent", "stopped"}

_PACKAGES = ("opifex", "jax", "jaxlib", "equinox", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run computes: equal configurations give equal results."""

    problem: str
    steps: int
    seed: int
    ensemble: int
    sampler: str
    optimizer: str
    dtype: str

    def __post_init__(self):
        check_count("steps", self.steps)
        check_count("seed", self.seed, least=0)
        check_count("ensemble", self.ensemble)


def run(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    time_budget: float = math.inf,
    devices: Sequence[Any] = (),
) -> dict[str, Any]:
    """Trains, judges the result against the reference, and writes what there is to see.

    **Arguments:**

    - `config`: what to compute.
    - `folder`: gets `run.json`, `history.csv`, `best.eqx`, `solution.npz` and
        `checkpoints`, and `dissociation.npz` for a density functional.
    - `resume`: whether to go on from its newest checkpoint.
    - `quiet`: whether to do without a progress bar.
    - `time_budget`: seconds after which to stop, resumably.
    - `devices`: that share out the points, or the members of an ensemble; those of all
        processes, if there are several. Without any, JAX chooses one.

    **Returns:** the figures, as they stand in `run.json`; of several processes, the
    first judges and writes, and the others return `result` and `resumable` alone.
    """
    if not time_budget > 0:
        raise ValueError(f"`time_budget` must be positive, got {time_budget!r}.")
    wall = time.perf_counter()
    benchmark = find_benchmark(config.problem, jnp.dtype(config.dtype))
    recipe = _recipe_of(config, benchmark)
    state = _first_state(config, benchmark, recipe)
    if devices:
        place = shared_out if config.ensemble > 1 else replicated
        state = place(state, devices)
    # A run may be made longer, but nothing else of it may change.
    fixed = {k: v for k, v in dataclasses.asdict(config).items() if k != "steps"}
    if resume:
        state = restore(folder / "checkpoints", state, config=fixed)
    if is_first():
        _write(folder, config, {"result": "running"})
    best = Best(folder / "best.eqx")
    callbacks: list[AbstractCallback] = [History(folder / "history.csv")]
    if not isinstance(benchmark, OperatorBenchmark):
        callbacks.append(best)
    if not quiet:
        callbacks.append(ProgressBar(config.problem))
    if devices:
        callbacks = [OnFirst(callback) for callback in callbacks]
    callbacks.append(Checkpoint(folder / "checkpoints", config=fixed))
    chunk = _chunk_of(config, recipe, tuple(devices))
    try:
        state = _train(config, benchmark, chunk, state, callbacks, time_budget)
    except TrainingError as error:
        if error.__cause__ is not None:
            raise  # a chunk or a checkpoint failed, which is no result
        state = error.state
    state = local(state) if devices else state
    if not is_first():
        return {"result": min(_results(state)), "resumable": _resumable(state)}
    figures = _judged(benchmark, recipe, state, best, folder / "solution.npz")
    figures |= {
        "dtype": config.dtype,
        "resumable": _resumable(state),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time(),  # of the program, compilation included
    }
    _write(folder, config, figures)
    return figures


def _judged(
    benchmark: AnyBenchmark,
    recipe: Recipe,
    state: TrainingState,
    best: Best,
    path: Path,
) -> dict[str, Any]:
    if isinstance(benchmark, OperatorBenchmark):
        return judge_operator(benchmark, recipe, state, path)
    model, points = best.restore(state)
    # Not by `replace`, which checks shapes: it may be that of an ensemble.
    state = eqx.tree_at(lambda s: s.model, state, model)
    if isinstance(benchmark, DissociationBenchmark):
        return judge_dissociation(benchmark, recipe, state, path)
    return judge(benchmark, recipe, state, points, path)


def _recipe_of(config: Config, benchmark: AnyBenchmark) -> Recipe:
    return make_recipe(
        benchmark,
        sampler=config.sampler,
        optimizer=config.optimizer,
        steps=config.steps,
        chunk=min(_length(benchmark), config.steps),
        seed=config.seed,
        # To ask for another dtype is to ask for this; every report names it.
        single_precision=jnp.dtype(config.dtype) != jnp.float64,
    )


def _first_state(
    config: Config, benchmark: AnyBenchmark, recipe: Recipe
) -> TrainingState:
    def start(key):
        model_key, run_key = jr.split(key)
        model = benchmark.model(model_key, jnp.dtype(config.dtype))
        return recipe.init(model, key=run_key)

    key = jr.key(config.seed)
    if config.ensemble == 1:
        return start(key)
    return ensemble(start, jr.split(key, config.ensemble))


def _length(benchmark: AnyBenchmark) -> int:
    """How many steps lie between two validations."""
    return benchmark.chunk if isinstance(benchmark, DissociationBenchmark) else CHUNK


def _chunk_of(config: Config, recipe: Recipe, devices: tuple) -> Callable[[int], Chunk]:
    """The chunk of so many steps."""

    def chunk(steps: int) -> Chunk:
        one = dataclasses.replace(recipe, steps=steps)
        if config.ensemble > 1:
            return Ensemble(one, devices=devices)
        if not devices:
            return one
        spread = DataParallel(recipe.sampler, devices)
        return dataclasses.replace(one, sampler=spread)

    return chunk


def _train(config, benchmark, chunk, state, callbacks, time_budget) -> TrainingState:
    """Whole chunks, and one shorter if the steps are no multiple of them."""
    end, length = time.monotonic() + time_budget, min(_length(benchmark), config.steps)
    # After a single chunk there is nothing to choose from.
    several = config.steps > length
    validation = _validation(benchmark, jr.key(config.seed)) if several else None
    left = max(config.steps - int(np.max(on_host(state.step))), 0)
    whole, rest = divmod(left, length)
    for steps, num_chunks in ((length, whole), (rest, min(rest, 1))):
        state = fit(
            chunk(max(steps, 1)),
            state,
            num_chunks=num_chunks,
            callbacks=callbacks if num_chunks else (),
            validation=validation,
            time_budget=max(end - time.monotonic(), 1e-9),
        )
        if _resumable(state):
            break
    return state


def _resumable(state: TrainingState) -> bool:
    return bool(_results(state) & _RESUMABLE)


def _validation(benchmark: AnyBenchmark, key: Key) -> Validation | None:
    if isinstance(benchmark, DissociationBenchmark):
        return benchmark.validation()
    return held_out(benchmark, key) if isinstance(benchmark, Benchmark) else None


def _results(state: TrainingState) -> set[str]:
    """By name, how the run ended for its members."""
    return {RESULT_NAMES[i] for i in np.atleast_1d(state.progress.result._value)}


def _write(folder: Path, config: Config, figures: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    document = {
        "config": dataclasses.asdict(config),
        "figures": figures,
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "machine": {
            "platform": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cores": os.cpu_count(),
        },
    }
    (folder / "run.json").write_text(json.dumps(document, indent=2) + "\n")
