"""Truncated Fourier series of functions on a grid: the low modes, and back.

Real functions on a periodic grid of `d` axes, channels last. With `m` modes along an
axis, the frequencies `|k| < m` are kept: on the last axis `0, ..., m - 1`, since the
functions are real, on the others `-(m - 1), ..., m - 1`. The frequency of Nyquist, at
which a grid cannot tell a cosine from a sine, is never among them. Coefficients are
those of the series (the sum over the grid is divided by the number of its points), so
that they do not depend on the grid. They are kept as real and imaginary parts along a
first axis of size two.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.lax import complex as complex_of, Precision
from jaxtyping import Array, Float


# Up to so many modes an axis, products with the matrix of the transform are at least
# as fast as fast transforms, on a CPU and on grids of 24 to 8192 points an axis: see
# `benchmarks/fno.py`. The size of the grid was found to matter little.
MATMUL_MODES = 32


def check_grid(grid: Sequence[int], modes: Sequence[int]) -> None:
    """Raises `ValueError` unless a grid tells apart the frequencies `|k| < modes`."""
    if len(grid) != len(modes):
        raise ValueError(
            f"`x` lies on a grid of {len(grid)} axes, {tuple(grid)}, but the network "
            f"is for {len(modes)}. Give it an array of shape `(*grid, channels)`, and "
            "map it over the functions of a batch with `jax.vmap`."
        )
    if any(n < 2 * m - 1 for n, m in zip(grid, modes, strict=True)):
        least = tuple(2 * m - 1 for m in modes)
        raise ValueError(
            f"`x` lies on a grid of {tuple(grid)} points, too few for `modes` of "
            f"{tuple(modes)}, which need {least} at least. Use a finer grid, or fewer "
            "modes."
        )


def by_matmul(modes: Sequence[int]) -> bool:
    """Whether products with matrices are the faster way; see `MATMUL_MODES`."""
    return max(modes) <= MATMUL_MODES


def analyse(
    x: Float[Array, "*grid channels"], modes: Sequence[int]
) -> Float[Array, "2 *modes channels"]:
    """The coefficients of the frequencies below `modes`."""
    way = _analyse_matmul if by_matmul(modes) else _analyse_fft
    return way(x, modes)


def synthesise(
    z: Float[Array, "2 *modes channels"], grid: Sequence[int]
) -> Float[Array, "*grid channels"]:
    """The function on a grid that has these coefficients and no others.

    Its real part, where those at frequency zero of the last axis are not symmetric.
    """
    modes = (*((size + 1) // 2 for size in z.shape[1:-2]), z.shape[-2])
    way = _synthesise_matmul if by_matmul(modes) else _synthesise_fft
    return way(z, grid)


def refine(
    x: Float[Array, "*grid channels"], grid: Sequence[int]
) -> Float[Array, "*new channels"]:
    """A function on another grid, finer or coarser, by its Fourier series.

    A coarser grid keeps only the frequencies that it tells apart: nothing is aliased.
    """
    for axis, size in enumerate(grid):
        x = _refine_axis(x, axis, size)
    return x


def _refine_axis(x: Array, axis: int, size: int) -> Array:
    old = x.shape[axis]
    if old == size:
        return x
    z = jnp.moveaxis(jnp.fft.rfft(x, axis=axis, norm="forward"), axis, -1)
    fewer = min(old, size)
    z = z[..., : fewer // 2 + 1]
    if fewer % 2 == 0:  # the cosine of Nyquist is two modes of the finer grid, halved
        z = jnp.concatenate([z[..., :-1], z[..., -1:] * (0.5 if size > old else 2)], -1)
    return jnp.moveaxis(jnp.fft.irfft(z, size, axis=-1, norm="forward"), -1, axis)


# By matrices --------------------------------------------------------------------------


@functools.cache
def _angles(size: int, modes: int, whole: bool) -> np.ndarray:
    """`2 pi k j / size`, `(frequencies, size)`, with `k j` reduced before it rounds."""
    k = np.arange(1 - modes if whole else 0, modes)
    return 2 * np.pi / size * (k[:, None] * np.arange(size)[None] % size)


def _apply(matrix: np.ndarray, x: Array, axes: tuple[int, ...]) -> Array:
    """Contracts the last axes of a matrix with `axes` of `x`; its others come first."""
    last = tuple(range(matrix.ndim - len(axes), matrix.ndim))
    constant = jnp.asarray(matrix, x.dtype)
    return jnp.tensordot(constant, x, (last, axes), precision=Precision.HIGHEST)


def _analyse_matmul(x: Array, modes: Sequence[int]) -> Array:
    dim = len(modes)
    angles = _angles(x.shape[dim - 1], modes[-1], whole=False)
    matrix = np.stack([np.cos(angles), -np.sin(angles)]) / angles.shape[1]
    z = jnp.moveaxis(_apply(matrix, x, (dim - 1,)), 1, dim)
    for axis in range(dim - 1):
        angles = _angles(x.shape[axis], modes[axis], whole=True)
        cos, sin = np.cos(angles), np.sin(angles)
        matrix = np.array([[cos, sin], [-sin, cos]]) / angles.shape[1]
        matrix = matrix.transpose(0, 2, 1, 3)  # (part, frequency, part, point)
        z = jnp.moveaxis(_apply(matrix, z, (0, axis + 1)), 1, axis + 1)
    return z


def _synthesise_matmul(z: Array, grid: Sequence[int]) -> Array:
    dim = len(grid)
    for axis in range(dim - 1):
        angles = _angles(grid[axis], (z.shape[axis + 1] + 1) // 2, whole=True).T
        cos, sin = np.cos(angles), np.sin(angles)
        matrix = np.array([[cos, -sin], [sin, cos]]).transpose(0, 2, 1, 3)
        z = jnp.moveaxis(_apply(matrix, z, (0, axis + 1)), 1, axis + 1)
    angles = _angles(grid[-1], z.shape[dim], whole=False).T
    twice = np.where(np.arange(angles.shape[1]) > 0, 2, 1)  # for the frequency -k
    matrix = np.stack([twice * np.cos(angles), -twice * np.sin(angles)], axis=1)
    return jnp.moveaxis(_apply(matrix, z, (0, dim)), 0, dim - 1)


# By fast transforms -------------------------------------------------------------------


def _analyse_fft(x: Array, modes: Sequence[int]) -> Array:
    dim = len(modes)
    z = jnp.fft.rfftn(x, axes=tuple(range(dim)), norm="forward")
    for axis, m in enumerate(modes):
        low = jnp.moveaxis(z, axis, 0)
        whole = axis < dim - 1 and m > 1
        low = jnp.concatenate([low[1 - m :], low[:m]]) if whole else low[:m]
        z = jnp.moveaxis(low, 0, axis)
    return jnp.stack([z.real, z.imag])


def _synthesise_fft(z: Array, grid: Sequence[int]) -> Array:
    y, dim = complex_of(z[0], z[1]), len(grid)
    for axis, size in enumerate(grid[:-1]):
        low = jnp.moveaxis(y, axis, 0)
        m = (len(low) + 1) // 2
        gap = jnp.zeros((size - len(low), *low.shape[1:]), y.dtype)
        y = jnp.moveaxis(jnp.concatenate([low[m - 1 :], gap, low[: m - 1]]), 0, axis)
    y = jnp.fft.ifftn(y, axes=tuple(range(dim - 1)), norm="forward") if dim > 1 else y
    return jnp.fft.irfft(y, grid[-1], axis=dim - 1, norm="forward")
