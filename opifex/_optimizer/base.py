from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import PyTree

from .memory import device_memory


def check_optimizer(argument: str, optim: Any) -> None:
    """Raises unless `optim` is an optax optimizer."""
    if isinstance(optim, optax.GradientTransformation):
        return
    raise TypeError(
        f"`{argument}` must be an `optax.GradientTransformation`, got {optim!r} of "
        f"type {type(optim).__name__}. Make one with, for instance, `optax.adam(1e-3)`."
    )


def check_positive(**numbers: float) -> None:
    """Raises unless all `numbers`, each by the name of its argument, are positive."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"`{name}` must be positive, got {number!r}.")


def needed(name: str, extra: dict[str, Any], *wanted: str) -> tuple[Any, ...]:
    """The keyword arguments of `update` that an optimizer cannot do without."""
    missing = [key for key in wanted if key not in extra]
    if missing:
        raise TypeError(
            f"`{name}` looks at more than the gradient: its `update` needs {missing} "
            "besides, as keyword arguments. `train_step` hands them over."
        )
    return tuple(extra[key] for key in wanted)


def check_precise(name: str, params: PyTree, single_precision: bool) -> jnp.dtype:
    """Raises unless `params` are real, and float64 or excused by `single_precision`.

    **Returns:** the dtype they have as one vector.
    """
    dtypes = [x.dtype for x in jtu.tree_leaves(params)]
    for dtype in dtypes:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"`{name}` trains real parameters, got {dtype}. Split them into real "
                "and imaginary parts, or use a first-order optimizer."
            )
    narrow = [dtype for dtype in dtypes if dtype != jnp.float64]
    if narrow and not single_precision:
        x64 = (
            "Make the model in float64"
            if jnp.result_type(float) == jnp.float64
            else 'Call `jax.config.update("jax_enable_x64", True)` before the model is '
            "made (or work under `with jax.enable_x64(True):`)"
        )
        raise ValueError(
            f"`{name}` needs float64, where it gains orders of magnitude that "
            f"rounding hides from it in less, but the parameters are {narrow[0]}. "
            f"{x64}, or take what less gives by `single_precision=True`."
        )
    return jnp.result_type(*dtypes)


def check_memory(name: str, num_numbers: int, dtype: Any, remedy: str) -> None:
    """Raises if so many numbers do not fit into the memory of the device."""
    need, there = num_numbers * jnp.dtype(dtype).itemsize, device_memory()
    if need > there:
        raise ValueError(
            f"`{name}` would need {_readable(need)} here, but there are "
            f"{_readable(there)} of memory. {remedy}"
        )


def _readable(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
