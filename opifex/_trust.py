"""Whether a trained model is to be trusted: what the loss does not say."""

import logging
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array

from ._custom_types import Key, Scalar
from ._misc import check_count, squared
from ._problem.base import plain
from ._problem.conditions import part_of
from ._problem.pde import PDE


_log = logging.getLogger("opifex")

# A residual that is so many times larger between the points of training than at them
# is that of a model that fits the points, not the equation. A well-trained one has a
# ratio of about one, below one where points lie densest at the largest residuals.
SUSPICIOUS_RATIO = 10.0

_NUM_TIMES = 65


def trust(
    problem: PDE,
    model: Any,
    batch: dict[str, Array],
    key: Key,
    num_points: int = 1000,
) -> dict[str, Any]:
    """How far the loss can be believed.

    A small loss is no small error: the residual may be small at the points of training
    alone, and a condition may fail where its weight is small. Warns (of the logger
    `"opifex"`) if the residual is more than `SUSPICIOUS_RATIO` = 10 times as large on
    fresh points as on those of training.

    **Arguments:**

    - `problem`: the equations and their conditions.
    - `model`: as trained.
    - `batch`: the points it was trained on, by set.
    - `key`: of the fresh points.
    - `num_points`: how many of them there are in the domain, and on the boundary for
        each condition.

    **Returns:** a dictionary, all numbers in it scalar arrays, without weights:

    - `"residual_ratio"`: root mean square of the residual of the equations at fresh
        points over that at the points of training.
    - `"residual"`, `"training_residual"`: by equation, `"rms"` and `"max"`.
    - `"conditions"`: by condition, exact ones too, `"rms"` and `"max"` of by how much
        it fails.
    - `"measured"`: likewise, by the name of what was measured.
    - `"drift"`: by conserved quantity, `"rms"` and `"max"` over time of by how much it
        differs from its reference.
    """
    check_count("num_points", num_points)
    found = _measure(problem, model, batch, key, num_points)
    ratio = found["residual_ratio"]
    if not isinstance(ratio, Tracer) and not ratio < SUSPICIOUS_RATIO:
        _log.warning(
            "Small loss, wrong solution? The residual is %.3g times as large on fresh "
            "points as on those of training. Train on more points, or on fresh ones "
            "(`Uniform`, `QuasiRandom`, `RAD`).",
            float(ratio),
        )
    return found


@eqx.filter_jit
def _measure(problem: PDE, model, batch, key: Key, num_points: int) -> dict[str, Any]:
    network, coefficients = problem.parts(model)
    setting = problem.setting_with(coefficients)
    points = problem.domain.sample(num_points, jr.fold_in(key, 0))
    fresh = problem.equations(model, points)
    seen = problem.equations(model, plain(batch)["interior"])
    conditions = {}
    for i, condition in enumerate(problem.conditions):
        piece = part_of(problem.domain, condition.boundary)
        where = piece.sample(num_points, jr.fold_in(key, i + 1))
        residual = condition.residual(setting, network, where)
        conditions[condition.label(setting.fields)] = _size(residual)
    measured = {d.name: _size(d.residual(setting, network)) for d in problem.measured}
    drift = {}
    for law in problem.conserved:
        time = problem.domains["times"]
        times = jnp.linspace(time.lower[0], time.upper[0], _NUM_TIMES)
        drift[law.name] = _size(law.drift(problem.domain, network, times, coefficients))
    least = jnp.finfo(points.dtype).tiny
    return {
        "residual_ratio": _total(fresh) / jnp.maximum(_total(seen), least),
        "residual": {name: _size(r) for name, r in fresh.items()},
        "training_residual": {name: _size(r) for name, r in seen.items()},
        "conditions": conditions,
        "measured": measured,
        "drift": drift,
    }


def _size(residual: Array) -> dict[str, Scalar]:
    size = squared(residual)
    return {"rms": jnp.sqrt(jnp.mean(size)), "max": jnp.sqrt(jnp.max(size))}


def _total(residuals: dict[str, Array]) -> Scalar:
    """The root mean square of several equations together."""
    squares = [jnp.mean(squared(r)) for r in residuals.values()]
    return jnp.sqrt(sum(squares[1:], squares[0]))
