"""A run of the command line: from its options to the files in its folder."""

import dataclasses
import json
import math
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

from .._callback.base import AbstractCallback
from .._callback.checkpoint import Checkpoint
from .._callback.history import History
from .._callback.progress import ProgressBar
from .._checkpoint import restore
from .._ensemble import Ensemble, ensemble
from .._fit import fit, TrainingError
from .._misc import check_count
from .._recipe import Recipe
from .._results import RESULT_NAMES
from .._state import TrainingState
from .base import Benchmark, Reference
from .recipe import make_benchmark, make_recipe


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
) -> dict[str, Any]:
    """Trains, judges the result against the reference, and writes what there is to see.

    **Arguments:**

    - `config`: what to compute.
    - `folder`: gets `run.json`, `history.csv`, `solution.npz` and `checkpoints`.
    - `resume`: whether to go on from its newest checkpoint.
    - `quiet`: whether to do without a progress bar.
    - `time_budget`: seconds after which to stop, resumably.

    **Returns:** the figures, as they stand in `run.json`.
    """
    if not time_budget > 0:
        raise ValueError(f"`time_budget` must be positive, got {time_budget!r}.")
    wall, dtype = time.perf_counter(), jnp.dtype(config.dtype)
    benchmark = make_benchmark(config.problem, dtype)
    recipe = make_recipe(
        benchmark,
        sampler=config.sampler,
        optimizer=config.optimizer,
        steps=config.steps,
        chunk=min(CHUNK, config.steps),
        seed=config.seed,
    )
    state = _first_state(config, benchmark, recipe)
    if resume:
        state = restore(folder / "checkpoints", state)
    _write(folder, config, {"result": "running"})
    callbacks: list[AbstractCallback] = [
        History(folder / "history.csv"),
        Checkpoint(folder / "checkpoints"),
    ]
    if not quiet:
        callbacks.append(ProgressBar(config.problem))
    try:
        state = _train(config, recipe, state, callbacks, time_budget)
    except TrainingError as error:
        state = error.state
    figures = _judge(config, benchmark, state, folder)
    figures |= {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time(),  # of the program, compilation included
    }
    _write(folder, config, figures)
    return figures


def _first_state(config: Config, benchmark: Benchmark, recipe: Recipe) -> TrainingState:
    def start(key):
        model_key, run_key = jr.split(key)
        model = benchmark.model(model_key, jnp.dtype(config.dtype))
        return recipe.init(model, key=run_key)

    key = jr.key(config.seed)
    if config.ensemble == 1:
        return start(key)
    return ensemble(start, jr.split(key, config.ensemble))


def _train(config, recipe, state, callbacks, time_budget) -> TrainingState:
    """Whole chunks, and one shorter if the steps are no multiple of them."""
    end = time.monotonic() + time_budget
    left = max(config.steps - int(np.max(state.step)), 0)
    whole, rest = divmod(left, recipe.steps)
    for steps, num_chunks in ((recipe.steps, whole), (rest, min(rest, 1))):
        chunk = dataclasses.replace(recipe, steps=max(steps, 1))
        state = fit(
            chunk if config.ensemble == 1 else Ensemble(chunk),
            state,
            num_chunks=num_chunks,
            callbacks=callbacks if num_chunks else (),
            time_budget=max(end - time.monotonic(), 1e-9),
        )
        if _results(state) & _RESUMABLE:
            break
    return state


def _results(state: TrainingState) -> set[str]:
    """By name, how the run ended for its members."""
    return {RESULT_NAMES[i] for i in np.atleast_1d(state.progress.result._value)}


def _judge(
    config: Config, benchmark: Benchmark, state: TrainingState, folder: Path
) -> dict[str, Any]:
    """The figures of the trained model, or of the member with the lowest loss."""
    reference = benchmark.reference()
    members = [state] if config.ensemble == 1 else _members(state, config.ensemble)
    errors = [float(benchmark.rel_l2(m.model, reference)) for m in members]
    losses = [float(m.progress.best_loss) for m in members]
    chosen = int(np.argmin(losses))
    member = members[chosen]
    _save_solution(benchmark, reference, member, folder / "solution.npz")
    arrays = jtu.tree_leaves(eqx.filter(member.model, eqx.is_inexact_array))
    figures = {
        "problem": config.problem,
        "rel_l2": errors[chosen],
        "reference_error": reference.error,
        "steps": int(member.step),
        "n_params": sum(x.size for x in arrays),
        "dtype": config.dtype,
        "result": RESULT_NAMES[int(member.progress.result._value)],
    }
    figures["resumable"] = figures["result"] in _RESUMABLE
    if config.ensemble > 1:
        figures["rel_l2_members"] = errors
    return figures


def _members(state: TrainingState, number: int) -> list[TrainingState]:
    arrays, static = eqx.partition(state, eqx.is_array)
    pick = lambda i: jtu.tree_map(lambda x: x[i], arrays)
    return [eqx.combine(pick(i), static) for i in range(number)]


def _save_solution(
    benchmark: Benchmark, reference: Reference, state: TrainingState, path: Path
) -> None:
    prediction = benchmark.on_grid(state.model, reference)
    sampled = state.sampler_state
    arrays = {
        "names": np.array(list(reference.axes)),
        "prediction": np.asarray(prediction),
        "reference": np.asarray(reference.values),
    }
    if isinstance(sampled, dict):  # some samplers keep no points
        arrays["points"] = np.asarray(sampled["interior"])
    for i, axis in enumerate(reference.axes.values()):
        arrays[f"axis{i}"] = np.asarray(axis)
    np.savez(path, allow_pickle=False, **arrays)


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
