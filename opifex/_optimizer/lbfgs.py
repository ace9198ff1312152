from typing import Any

import optax

from .._misc import check_count
from .base import check_precise


def lbfgs(
    memory_size: int = 10, *, single_precision: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`optax.lbfgs` with its line search to the Wolfe conditions, for real parameters
    in float64.

    **Arguments:**

    - `memory_size`: pairs of steps and changes of the gradient that are kept.
    - `single_precision`: whether to accept parameters that are not float64.

    **Raises:** `ValueError` for complex parameters, and for those of less than float64
    without `single_precision`.

    ??? cite "Reference"

        D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale
        optimization", Mathematical Programming 45, 1989.
    """
    check_count("memory_size", memory_size)
    optim = optax.lbfgs(memory_size=memory_size)

    def init(params) -> Any:
        check_precise("lbfgs", params, single_precision)
        return optim.init(params)

    return optax.GradientTransformationExtraArgs(init, optim.update)
