"""Two ways to the low Fourier modes: products with matrices, and fast transforms.

    python benchmarks/fno.py [--json FILE]

The CPU time of a convolution of [`FNO`][] with its gradient, for batches as they are
trained on, the fast transform over the matrices: above 1 the matrices are faster. The
rule of `opifex.neural.fourier.by_matmul` follows from it.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from _measure import median_ratios

from opifex.neural import fourier, SpectralConv


# Axes, points an axis, modes, channels, functions.
CASES = (
    (1, 256, 16, 64, 8),
    (1, 256, 32, 64, 8),
    (1, 256, 64, 64, 8),
    (1, 1024, 16, 64, 4),
    (1, 1024, 32, 64, 4),
    (1, 1024, 64, 64, 4),
    (1, 8192, 16, 32, 2),
    (1, 8192, 64, 32, 2),
    (2, 64, 12, 32, 2),
    (2, 64, 31, 32, 2),
    (3, 24, 6, 16, 1),
)


def convolution(case: tuple[int, int, int, int, int], most: int) -> Callable:
    """The step to be timed, by matrices up to `most` modes."""
    dim, size, modes, width, rows = case
    shape = (rows, *(size,) * dim, width)
    conv = SpectralConv(width, width, (modes,) * dim, key=jr.key(0), dtype=jnp.float32)
    x = jr.normal(jr.key(1), shape, jnp.float32)
    loss = lambda conv, x: jnp.sum(jax.vmap(conv)(x) ** 2)
    kept, fourier.MATMUL_MODES = fourier.MATMUL_MODES, most
    try:
        step = eqx.filter_jit(jax.grad(loss, (0, 1))).lower(conv, x).compile()
    finally:
        fourier.MATMUL_MODES = kept
    return lambda: jax.block_until_ready(step(conv, x))


def figures(rounds: int = 7) -> dict[str, float]:
    """By case, how many times the time of matrices fast transforms take."""
    found = {}
    for case in CASES:
        runs = {"matmul": convolution(case, 10**9), "fft": convolution(case, 0)}
        ratio = median_ratios(runs, "matmul", rounds)["fft"]
        found["fno.fft_over_matmul_{}d_{}_modes{}".format(*case)] = ratio
        print(f"{case}: {ratio:.2f}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = figures()
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
