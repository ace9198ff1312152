"""Optimizers by name, for configurations that are written as text."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from .._misc import unknown_name
from .bfgs import bfgs, ssbfgs
from .lbfgs import lbfgs
from .levenberg_marquardt import levenberg_marquardt
from .muon import muon
from .natural_gradient import engd
from .nncg import nncg
from .soap import soap
from .ssbroyden import ssbroyden


class _Entry(NamedTuple):
    """How to make an optimizer, and what it calls its settings."""

    make: Callable[..., Any]
    settings: Mapping[str, str]
    searches: bool = False  # for the length of its steps; it has no learning rate


_ADAM = {"beta1": "b1", "beta2": "b2", "eps": "eps"}
_DECAYS = {"weight_decay": "weight_decay"}
_PRECISE = {"single_precision": "single_precision"}

OPTIMIZERS: dict[str, _Entry] = {
    "adabelief": _Entry(optax.adabelief, _ADAM),
    "adagrad": _Entry(optax.adagrad, {"eps": "eps"}),
    "adam": _Entry(optax.adam, _ADAM),
    "adamax": _Entry(optax.adamax, _ADAM),
    "adamw": _Entry(optax.adamw, _ADAM | _DECAYS),
    "amsgrad": _Entry(optax.amsgrad, _ADAM),
    "lamb": _Entry(optax.lamb, _ADAM | _DECAYS),
    "bfgs": _Entry(bfgs, _PRECISE, searches=True),
    "engd": _Entry(engd, _PRECISE, searches=True),
    "lbfgs": _Entry(lbfgs, _PRECISE | {"memory_size": "memory_size"}, searches=True),
    "levenberg_marquardt": _Entry(levenberg_marquardt, _PRECISE, searches=True),
    "lion": _Entry(optax.lion, {"beta1": "b1", "beta2": "b2"} | _DECAYS),
    "muon": _Entry(
        muon,
        {"momentum": "beta", "beta1": "adam_b1", "beta2": "adam_b2", "eps": "eps"}
        | _DECAYS,
    ),
    "nadam": _Entry(optax.nadam, _ADAM),
    "nadamw": _Entry(optax.nadamw, _ADAM | _DECAYS),
    "nncg": _Entry(nncg, _PRECISE, searches=True),
    "radam": _Entry(optax.radam, _ADAM),
    "rmsprop": _Entry(
        optax.rmsprop, {"momentum": "momentum", "beta2": "decay", "eps": "eps"}
    ),
    "sgd": _Entry(optax.sgd, {"momentum": "momentum"}),
    "soap": _Entry(soap, _ADAM | _DECAYS),
    "ssbfgs": _Entry(ssbfgs, _PRECISE, searches=True),
    "ssbroyden": _Entry(ssbroyden, _PRECISE, searches=True),
    "yogi": _Entry(optax.yogi, _ADAM),
}
"""What [`named_optimizer`][] knows."""


def searches_along_a_line(name: str) -> bool:
    """Whether an optimizer finds the length of its steps by itself, and so has neither
    a learning rate nor a schedule.

    **Raises:** `ValueError` for a name that is not in `OPTIMIZERS`.
    """
    if name not in OPTIMIZERS:
        raise ValueError(unknown_name("optimizer_type", name, OPTIMIZERS))
    return OPTIMIZERS[name].searches


def named_optimizer(
    name: str,
    learning_rate: Any,
    *,
    grad_clip: int | float | None = None,
    **settings: Any,
) -> optax.GradientTransformation:
    """An optimizer by its name.

    **Arguments:**

    - `name`: out of `OPTIMIZERS`.
    - `learning_rate`: a number or a schedule. Those that find the length of their steps
        by themselves do not look at it.
    - `grad_clip`: the norm to which the gradient is clipped beforehand.
    - `settings`: `weight_decay`, `momentum`, `beta1`, `beta2`, `eps`, as far as the
        optimizer has them; `None` for its own default. Every optimizer with a learning
        rate has a weight decay: its own, or else that of the gradient, to which
        `weight_decay` times the parameters is added. Those of second order have
        `single_precision`, which is whether to accept less than float64.

    **Raises:** `ValueError` for an unknown name, and for a setting that it has not.
    """
    searches = searches_along_a_line(name)
    make, known, _ = OPTIMIZERS[name]
    given = {known[k]: v for k, v in settings.items() if v is not None and k in known}
    if searches:
        _check_settings(name, settings | {"grad_clip": grad_clip}, known)
        return make(**given)
    _check_settings(name, settings, {*known, "weight_decay"})
    optim = make(learning_rate, **given)
    decay = settings.get("weight_decay")
    before = [] if grad_clip is None else [optax.clip_by_global_norm(grad_clip)]
    if decay is not None and "weight_decay" not in known:
        before.append(optax.add_decayed_weights(decay))
    return optax.chain(*before, optim) if before else optim


def _check_settings(name: str, settings: Mapping[str, Any], known: Any) -> None:
    for key, value in settings.items():
        if value is not None and key not in known:
            raise ValueError(
                f"`{key}` = {value!r} has no meaning for the optimizer {name!r}, which "
                f"has {sorted(known) or 'no settings'}. Leave it out."
            )
