from typing import Any

import optax


def check_optimizer(argument: str, optim: Any) -> None:
    """Raises unless `optim` is an optax optimizer."""
    if isinstance(optim, optax.GradientTransformation):
        return
    raise TypeError(
        f"`{argument}` must be an `optax.GradientTransformation`, got {optim!r} of "
        f"type {type(optim).__name__}. Make one with, for instance, `optax.adam(1e-3)`."
    )
