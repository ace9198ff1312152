from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._custom_types import Key
from ..._problem.operator import operator_problem
from ..._problem.supervised import Pairs, Supervised
from ..._sampler.minibatch import Minibatch


# Functions that are predicted at once.
_TOGETHER = 20


class OperatorData(eqx.Module):
    """Pairs of functions to learn from, and others to be tested on.

    **Arguments:**

    - `train`, `test`: functions `(rows, *grid, channels)`.
    - `fine`: the same as `test`, on a grid twice as fine.
    - `axes`: the coordinates of the grid, by name.
    - `error`: relative L2 error of the targets themselves, as measured.
    """

    train: Pairs
    test: Pairs
    fine: Pairs
    axes: dict[str, np.ndarray]
    error: float = eqx.field(static=True)


class OperatorBenchmark(eqx.Module):
    """An operator to be learned, with everything that is needed to do and to judge it.

    **Arguments:**

    - `name`: on the command line.
    - `title`: one line for people.
    - `data`: computes the data, or finds them on disk.
    - `model`: makes a network, from a key and a dtype, for one normalised function.
    - `batch_size`: pairs of functions a step.
    - `sampler`, `optimizer`, `learning_rate`, `steps`, `dtype`: what serves it best, by
        the names of the command line; `learning_rate` is that of the start.
    """

    name: str = eqx.field(static=True)
    title: str = eqx.field(static=True)
    data: Callable[[], OperatorData]
    model: Callable[[Key, Any], Any]
    batch_size: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True, default=1e-3)
    sampler: str = eqx.field(static=True, default="minibatch")
    optimizer: str = eqx.field(static=True, default="adam")
    dtype: str = eqx.field(static=True, default="float32")

    def problem(self) -> Supervised:
        """The relative L2 error of functions, normalised by the training data."""
        train = self.data().train
        return operator_problem(train.inputs, train.targets)

    def minibatch(self) -> Minibatch:
        """Shuffled batches of the training data."""
        train = self.data().train
        return Minibatch(train.inputs, train.targets, self.batch_size)


def pairs(arrays: dict[str, np.ndarray], dtype: Any = None) -> Pairs:
    """`"inputs"` and `"targets"` as arrays of a dtype, of the default one if `None`."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    return Pairs(*(jnp.asarray(arrays[k], dtype) for k in ("inputs", "targets")))


@eqx.filter_jit
def predict(
    problem: Supervised, model: Any, inputs: Float[Array, "rows *grid channels"]
) -> Array:
    """The functions that a network answers with, few at a time to save memory."""
    key = jax.random.key(0)  # nothing here is random
    one = lambda x: problem.apply(model, x[None], key)[0][0]
    return jax.lax.map(one, inputs, batch_size=_TOGETHER)


def row_errors(problem: Supervised, model: Any, data: Pairs) -> np.ndarray:
    """The relative L2 error of each function, `(rows,)`, in double precision."""
    found = predict(problem, model, data.inputs)
    single = (np.asarray(x, np.float64) for x in (found, data.targets))
    found, truth = (x.reshape(len(data.targets), -1) for x in single)
    return np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth, axis=1)
