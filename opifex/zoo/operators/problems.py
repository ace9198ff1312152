"""The operators of the command line."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._problem.operator import coarsen
from ..._problem.supervised import Pairs
from ...neural.fno import FNO
from .base import OperatorBenchmark, OperatorData, pairs
from .burgers import burgers_data
from .cache import Arrays
from .darcy import darcy_data


def burgers_operator(
    dtype: Any = None,
    *,
    num_train: int = 1024,
    num_test: int = 200,
    grid: int = 256,
    steps: int = 10400,
    width: int = 64,
    modes: int = 16,
    num_layers: int = 4,
) -> OperatorBenchmark:
    """Burgers' equation to time one, `nu = 0.1`: Li et al. (2021), section 5.1.

    Network and first learning rate are as published; the rate falls along a cosine
    rather than by halves, over 200 epochs rather than 500. Data are computed on a grid
    four times as fine.
    """
    name, finest = jnp.dtype(dtype or jnp.result_type(float)).name, 4 * grid

    @functools.cache
    def data() -> OperatorData:
        arrays = burgers_data(num_train + num_test, grid=finest)
        axes = {"x": np.arange(grid) / grid}
        return _split(arrays, num_train, (4, 2), axes, name, periodic=True)

    network = functools.partial(
        FNO, 1, 1, 1, width=width, modes=modes, num_layers=num_layers
    )
    return OperatorBenchmark(
        "burgers-operator",
        "u(x, 0) -> u(x, 1) of Burgers' equation with nu = 0.1, by a Fourier operator",
        data,
        lambda key, dtype: network(key=key, dtype=dtype),
        batch_size=20,
        steps=steps,
    )


def darcy(
    dtype: Any = None,
    *,
    num_train: int = 1000,
    num_test: int = 100,
    grid: int = 43,
    steps: int = 1000,
    width: int = 32,
    modes: int = 12,
    num_layers: int = 4,
) -> OperatorBenchmark:
    """Flow through media of two permeabilities: Li et al. (2021), section 5.2.

    Network, numbers of pairs and first learning rate are as published; the rate falls
    along a cosine, over 20 epochs rather than 500. The data are computed on a grid
    twice as fine as that of training (85 points a side, where the authors took every
    fifth point of 421).
    """
    name, finest = jnp.dtype(dtype or jnp.result_type(float)).name, 2 * grid - 1

    @functools.cache
    def data() -> OperatorData:
        arrays = darcy_data(num_train + num_test, grid=finest)
        axes = {k: np.linspace(0, 1, grid) for k in ("x", "y")}
        return _split(arrays, num_train, (2, 1), axes, name, periodic=False)

    # With a seventh of its side the domain has 48 points, a product of small factors.
    network = functools.partial(
        FNO, 2, 1, 1, width=width, modes=modes, num_layers=num_layers, padding=1 / 7
    )
    return OperatorBenchmark(
        "darcy",
        "a -> u of -div(a grad u) = 1, a of two values, by a Fourier operator",
        data,
        lambda key, dtype: network(key=key, dtype=dtype),
        batch_size=20,
        steps=steps,
    )


def _split(
    arrays: Arrays,
    num_train: int,
    strides: tuple[int, int],
    axes: dict[str, np.ndarray],
    dtype: str,
    *,
    periodic: bool,
) -> OperatorData:
    """The first rows are trained on; strides: to the grid, and to the finer one."""

    def part(rows: slice, stride: int) -> Pairs:
        thin = lambda k: coarsen(arrays[k][rows], stride, periodic=periodic)
        return pairs({k: thin(k) for k in ("inputs", "targets")}, dtype)

    train, test = slice(num_train), slice(num_train, None)
    parts = part(train, strides[0]), part(test, strides[0]), part(test, strides[1])
    return OperatorData(*parts, axes, float(arrays["error"]))
