"""Optimizers with the settings and schedules of the command line, by name."""

import functools
from collections.abc import Callable
from typing import Any

import optax

from .._misc import unknown_name
from .factory import named_optimizer, OPTIMIZERS, searches_along_a_line
from .phases import phases


# What serves to find a good start for those that find their steps by themselves.
_FIRST = ("adam", "soap")
_FIRST_STEPS = 500
_SETTINGS: dict[str, dict[str, Any]] = {
    "lbfgs": {"memory_size": 50},
    "sgd": {"momentum": 0.9},
}


def planned_optimizer(
    name: str, steps: int, rate: float = 5e-3, *, single_precision: bool = False
) -> optax.GradientTransformation:
    """An optimizer for a run of `steps` steps, or two of them in turn.

    One that has a learning rate takes it down to zero along a cosine. `"adam+lbfgs"`
    are 500 steps of the first at a constant rate, and the others of the second.

    **Arguments:**

    - `name`: out of `PLANS`.
    - `steps`: of the whole run.
    - `rate`: the learning rate of the start, for those that have one.
    - `single_precision`: whether second-order methods may do with less than float64.

    **Raises:** `ValueError` for an unknown name.
    """
    if name not in PLANS:
        raise ValueError(unknown_name("optimizer", name, PLANS))
    make = functools.partial(_one, single_precision=single_precision)
    if "+" not in name:
        return make(name, optax.cosine_decay_schedule(rate, steps))
    before, after = name.split("+")
    first = min(_FIRST_STEPS, steps)
    return phases(
        (make(before, rate), first), (make(after, rate), max(steps - first, 1))
    )


def _one(name: str, rate: Any, single_precision: bool) -> optax.GradientTransformation:
    settings = dict(_SETTINGS.get(name, {}))
    if single_precision and "single_precision" in OPTIMIZERS[name].settings:
        settings["single_precision"] = True
    return named_optimizer(name, rate, **settings)


def _names() -> list[str]:
    searching = [name for name in OPTIMIZERS if searches_along_a_line(name)]
    return [*OPTIMIZERS, *(f"{a}+{b}" for a in _FIRST for b in searching)]


PLANS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: functools.partial(planned_optimizer, name) for name in _names()
}
"""Every optimizer of `OPTIMIZERS`, and every second-order one after a first-order one;
each takes the arguments of [`planned_optimizer`][] after the name."""
