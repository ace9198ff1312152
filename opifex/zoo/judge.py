"""How good a trained model is: its figures, and what there is to be drawn."""

import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

from .._problem.coefficients import Inverse
from .._problem.pde import PDE
from .._problem.uncertainty import coefficient_errors
from .._recipe import Recipe
from .._results import RESULT_NAMES
from .._sampler.adaptive import Placed
from .._state import TrainingState
from .._trust import trust
from .base import Benchmark, Fields, Reference


def judge(
    benchmark: Benchmark,
    recipe: Recipe,
    state: TrainingState,
    trained: Any,
    path: Path,
) -> dict[str, Any]:
    """The figures of the trained model, or of the member with the lowest loss.

    **Arguments:**

    - `benchmark`: what was to be solved, by `recipe`.
    - `state`: of the end, of one run or of an ensemble, with the models to judge.
    - `trained`: the state of the sampler that these were trained with.
    - `path`: where to write what there is to be drawn, see [`save_solution`][].
    """
    reference = benchmark.reference()
    members = members_of(state)
    fields = [
        reference.aligned(benchmark.evaluate(m.model, reference)) for m in members
    ]
    errors = [float(reference.rel_l2(f)) for f in fields]
    chosen = int(np.argmin([float(m.progress.best_loss) for m in members]))
    member = members[chosen]
    save_solution(fields[chosen], reference, member.sampler_state, path)
    figures = common_figures(benchmark.name, errors[chosen], reference, recipe, member)
    if len(reference.values) > 1:
        by_field = reference.rel_l2_fields(fields[chosen])
        figures["rel_l2_fields"] = {name: float(e) for name, e in by_field.items()}
    if len(members) > 1:
        figures["rel_l2_members"] = errors
        trained = jtu.tree_map(lambda x: x[chosen], trained)
    trained = jtu.tree_map(jnp.asarray, trained)
    return figures | _doubts(benchmark, recipe, member, trained)


def common_figures(
    name: str,
    error: float,
    reference: Reference,
    recipe: Recipe,
    member: TrainingState,
) -> dict[str, Any]:
    """The figures that every run has.

    **Arguments:**

    - `name`: of the benchmark.
    - `error`: relative to `reference`.
    - `recipe`, `member`: how it was trained, and the state of the end.
    """
    arrays = jtu.tree_leaves(eqx.filter(member.model, recipe.trainable(member.model)))
    return {
        "problem": name,
        "rel_l2": error,
        "reference_error": reference.error,
        "at_reference_floor": reference.floor(error),
        "steps": int(member.step),
        "n_params": sum(x.size for x in arrays),
        "result": RESULT_NAMES[int(member.progress.result._value)],
    }


def _doubts(
    benchmark: Benchmark, recipe: Recipe, state: TrainingState, trained: Any
) -> dict[str, Any]:
    """What can be said of a model without the reference."""
    problem, model = benchmark.problem, state.model
    if not isinstance(problem, PDE):
        return {}
    batch = recipe.sampler.batch(trained, state.key_for("batch"), state.step)
    fresh = jr.fold_in(state.key_for("batch"), 1)
    found = trust(problem, model, batch, fresh)
    figures: dict[str, Any] = {"trust": jtu.tree_map(float, found)}
    if isinstance(model, Inverse):
        bars = coefficient_errors(problem, model, batch)
        figures["coefficients"] = {
            name: {
                "value": float(model.values[name]),
                "truth": truth,
                "error_bar": float(bars.get(name, math.nan)),
            }
            for name, truth in benchmark.coefficients.items()
        }
    return figures


def members_of(state: TrainingState) -> list[TrainingState]:
    """The members of an ensemble; a single run is its own only one."""
    if state.step.ndim == 0:
        return [state]
    arrays, static = eqx.partition(state, eqx.is_array)
    pick = lambda i: jtu.tree_map(lambda x: x[i], arrays)
    return [eqx.combine(pick(i), static) for i in range(len(state.step))]


def save_solution(
    fields: Fields, reference: Reference, sampled: Any, path: Path
) -> None:
    """Writes what there is to be drawn.

    **Arguments:**

    - `fields`: what was predicted at the points of `reference`.
    - `reference`: the truth.
    - `sampled`: the state of the sampler.
    - `path`: of the file, an `.npz`.
    """
    arrays = {
        "coordinates": np.array(reference.coordinates),
        "fields": np.array(list(reference.values)),
        "points": np.asarray(reference.points),
    }
    for name, values in reference.values.items():
        arrays[f"prediction_{name}"] = np.asarray(fields[name])
        arrays[f"reference_{name}"] = np.asarray(values)
    for i, axis in enumerate((reference.axes or {}).values()):
        arrays[f"axis{i}"] = np.asarray(axis)
    sampled = sampled.points if isinstance(sampled, Placed) else sampled
    if isinstance(sampled, dict) and "interior" in sampled:  # some keep no points
        arrays["sampled"] = np.asarray(sampled["interior"])
    np.savez(path, allow_pickle=False, **arrays)
