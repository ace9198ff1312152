"""Measures without a closed form, by a low-discrepancy sequence on the host."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.stats import qmc


SCRAMBLINGS, ROWS = 8, 2**13
POINTS = SCRAMBLINGS * ROWS


def sobol(rows: int, cols: int, seed: int) -> np.ndarray:
    """The first points of a scrambled Sobol sequence, `(rows, cols)`."""
    exponent = (rows - 1).bit_length()
    return qmc.Sobol(cols, rng=seed).random_base2(exponent)[:rows]


def averages(
    function: Callable[[Array], Array],
    unit_dim: int,
    dtype: Any,
    scramblings: int = SCRAMBLINGS,
    rows: int = ROWS,
) -> np.ndarray:
    """The mean of `function` over the unit cube, once a scrambling: independent ones.

    `function` maps `(rows, unit_dim)` to `(rows,)`. From how the means differ one
    learns their error (A. B. Owen, "Scrambled net variance for integrals of smooth
    functions", Annals of Statistics 25(4), 1997).
    """
    means = []
    # Known numbers stay known, also while JAX is tracing what surrounds this.
    with jax.ensure_compile_time_eval():
        for seed in range(scramblings):
            unit = jnp.asarray(sobol(rows, unit_dim, seed), dtype)
            means.append(np.mean(np.asarray(function(unit), float)))
    return np.array(means)
