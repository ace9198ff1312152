"""How good a learned operator is: its figures, and what there is to be drawn."""

from pathlib import Path
from typing import Any

import numpy as np

from ..._recipe import Recipe
from ..._state import TrainingState
from ..base import Fields, Reference
from ..judge import common_figures, members_of, save_solution
from ..references.grids import tensor_points
from .base import OperatorBenchmark, OperatorData, predict, row_errors


def judge_operator(
    benchmark: OperatorBenchmark, recipe: Recipe, state: TrainingState, path: Path
) -> dict[str, Any]:
    """The figures of the trained model, or of the member with the lowest loss.

    Errors are means over the functions that were not trained on, each relative to the
    size of its target in L2, as published: `rel_l2` on the grid of training,
    `rel_l2_fine` on one twice as fine.

    **Arguments:**

    - `benchmark`: what was to be learned, by `recipe`.
    - `state`: of the end, of one run or of an ensemble.
    - `path`: where to write what there is to be drawn: the functions with the least,
        the median and the largest error, see [`save_solution`][].
    """
    data, problem = benchmark.data(), benchmark.problem()
    members = members_of(state)
    rows = [row_errors(problem, m.model, data.test) for m in members]
    chosen = int(np.argmin([float(m.progress.best_loss) for m in members]))
    member, errors = members[chosen], [float(r.mean()) for r in rows]
    fields, reference = _examples(problem, member.model, data, rows[chosen])
    save_solution(fields, reference, member.sampler_state, path)
    figures = common_figures(benchmark.name, errors[chosen], reference, recipe, member)
    figures["rel_l2_max"] = float(rows[chosen].max())
    figures["rel_l2_fine"] = float(row_errors(problem, member.model, data.fine).mean())
    if len(members) > 1:
        figures["rel_l2_members"] = errors
    return figures


def _examples(
    problem: Any, model: Any, data: OperatorData, errors: np.ndarray
) -> tuple[Fields, Reference]:
    order = np.argsort(errors)
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    rows = np.array(list(chosen.values()))
    found = predict(problem, model, data.test.inputs[rows])
    truth = {k: data.test.targets[i, ..., 0].ravel() for k, i in chosen.items()}
    points = tensor_points(data.axes)
    reference = Reference(points, truth, data.error, axes=data.axes)
    fields = {k: f[..., 0].ravel() for k, f in zip(chosen, found, strict=True)}
    return reference.aligned(fields), reference
