"""Learning rates by steps, for configurations that are written as text."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import optax

from .._misc import check_count, unknown_name


PLATEAU = "plateau"


class _Entry(NamedTuple):
    """How to make a schedule, and what it calls its settings."""

    make: Callable[..., optax.Schedule]
    settings: Mapping[str, str]


def _cosine(learning_rate, steps, alpha=0.0):
    return optax.cosine_decay_schedule(learning_rate, steps, alpha)


def _exponential(learning_rate, steps, rate=0.9, decay_steps=None):
    return optax.exponential_decay(learning_rate, decay_steps or steps, rate)


def _linear(learning_rate, steps):
    return optax.linear_schedule(learning_rate, 0.0, steps)


def _warmed_up(make, learning_rate, steps, warmup, **settings):
    """From zero along a line in `warmup` steps, and on by a schedule for the rest."""
    if not 0 < warmup < steps:
        raise ValueError(
            f"`warmup_steps` must lie between 0 and `total_steps` = {steps}, got "
            f"{warmup}."
        )
    rise = optax.linear_schedule(0.0, learning_rate, warmup)
    rest = make(learning_rate, steps - warmup, **settings)
    return optax.join_schedules([rise, rest], [warmup])


SCHEDULES: dict[str, _Entry] = {
    "constant": _Entry(lambda rate, steps: optax.constant_schedule(rate), {}),
    "cosine": _Entry(_cosine, {"cosine_alpha": "alpha"}),
    "exponential": _Entry(
        _exponential, {"decay_rate": "rate", "decay_steps": "decay_steps"}
    ),
    "linear": _Entry(_linear, {}),
    PLATEAU: _Entry(lambda rate, steps: optax.constant_schedule(rate), {}),
    "warmup_cosine": _Entry(_cosine, {"cosine_alpha": "alpha"}),
}
"""What [`named_schedule`][] knows."""


def named_schedule(
    name: str,
    learning_rate: int | float,
    total_steps: int,
    **settings: int | float | None,
) -> optax.Schedule:
    """A learning rate by steps: an optax schedule by its name.

    - `"constant"`: the learning rate itself.
    - `"cosine"`: to `cosine_alpha` (0) times it, in `total_steps`.
    - `"exponential"`: times `decay_rate` (0.9) every `decay_steps` (`total_steps`).
    - `"linear"`: to zero, in `total_steps`.
    - `"plateau"`: the learning rate itself, which [`reduced_on_plateau`][] then lowers.
    - `"warmup_cosine"`: as `"cosine"`, with a tenth of the steps to warm up, if
        `warmup_steps` does not say otherwise.

    With `warmup_steps` each begins at zero and rises that long; both together take
    `total_steps`.

    **Raises:** `ValueError` for an unknown name, and for a setting that it has not.
    """
    if name not in SCHEDULES:
        raise ValueError(unknown_name("schedule_type", name, SCHEDULES))
    make, known = SCHEDULES[name]
    warmup = settings.pop("warmup_steps", None)
    if warmup is None and name == "warmup_cosine":
        warmup = max(total_steps // 10, 1)
    for key, value in settings.items():
        if value is not None and key not in known:
            raise ValueError(
                f"`{key}` = {value!r} has no meaning for the schedule {name!r}, which "
                f"has {sorted([*known, 'warmup_steps'])}. Leave it out."
            )
    given = {known[key]: v for key, v in settings.items() if v is not None}
    if warmup is None:
        schedule = make(learning_rate, total_steps, **given)
    else:
        schedule = _warmed_up(make, learning_rate, total_steps, warmup, **given)

    def at(count):
        # Optax is not strict about dtypes.
        with jax.numpy_dtype_promotion("standard"):
            return schedule(count)

    return at


def reduced_on_plateau(
    optim: optax.GradientTransformation,
    *,
    factor: int | float = 0.5,
    patience: int = 5,
    window: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose steps are shortened whenever the loss has stopped to fall.

    `update` takes `value` besides; `train_step` hands it over. How much is left of the
    steps is part of the state, as is what was seen of the loss.

    **Arguments:**

    - `optim`: the optimizer.
    - `factor`: by which the steps are shortened.
    - `patience`: how many windows in a row have to pass without a better mean loss.
    - `window`: steps over which the loss is averaged.

    **Raises:** `ValueError` for what is no whole number of at least one, and a factor
    that is not between 0 and 1.
    """
    check_count("patience", patience)
    check_count("window", window)
    if not 0 < factor < 1:
        raise ValueError(f"`factor` must lie between 0 and 1, got {factor!r}.")
    reduce = optax.contrib.reduce_on_plateau(factor, patience, accumulation_size=window)
    return optax.with_extra_args_support(optax.chain(optim, reduce))
