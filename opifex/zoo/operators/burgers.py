"""Burgers' equation as an operator: from the velocity at the start to a later one."""

from collections.abc import Sequence

import numpy as np

from ..._misc import check_count
from ..references.spectral import etdrk4
from .cache import Arrays, cached


# Modes of the random functions, which are the same ones on every grid that holds them.
_MODES = 341


def random_start(num: int, grid: int, *, seed: int) -> np.ndarray:
    """Periodic random functions of mean zero, `(num, grid)`, at `j / grid`.

    Drawn from `N(0, 625 (-Laplace + 25)^-2)` without its constant, as published: the
    sum over `k` of `25 / ((2 pi k)^2 + 25) sqrt(2) (a cos 2 pi k x + b sin 2 pi k x)`
    with `a`, `b` standard normal. The first 341 modes are kept, or as many as are free
    of aliasing in the product of two functions; the first functions of a longer
    sequence are those of a shorter one.

    ??? cite "Reference"

        Z. Li et al., "Fourier neural operator for parametric partial differential
        equations", ICLR 2021, section 5.1.
    """
    modes = min(_MODES, grid // 3)
    draws = np.random.default_rng(seed).standard_normal((num, _MODES, 2))[:, :modes]
    deviation = np.sqrt(2) * 25 / ((2 * np.pi * np.arange(1, modes + 1)) ** 2 + 25)
    series = np.zeros((num, grid // 2 + 1), complex)
    # c cos + s sin is c - i s, halved, at the frequency and its conjugate at minus it.
    series[:, 1 : modes + 1] = deviation / 2 * (draws[..., 0] - 1j * draws[..., 1])
    return np.fft.irfft(series, grid, axis=1, norm="forward")


def solve_burgers(
    start: np.ndarray, *, nu: float, steps: int, time: float = 1.0
) -> np.ndarray:
    """`u_t + u u_x = nu u_xx`, periodic on `(0, 1)`, for many starts at once.

    By Fourier series whose products are free of aliasing (the rule of two thirds), and
    exponential Runge-Kutta steps of fourth order, see [`etdrk4`][].

    **Arguments:**

    - `start`: `(rows, points)`, at `j / points`.
    - `nu`: the viscosity.
    - `steps`: how many, of equal length.
    - `time`: of the end.

    **Returns:** the solution at the end, `(rows, points)`.

    **Raises:** `FloatingPointError` if it is not finite: `steps` are too few.
    """
    num = start.shape[1]
    modes = num // 3 + 1
    k = 2 * np.pi * np.arange(modes)

    def nonlinear(v):
        u = np.fft.irfft(v, num, axis=-1)
        return -0.5j * k * np.fft.rfft(u**2, axis=-1)[..., :modes]

    with np.errstate(over="ignore", invalid="ignore"):
        end = etdrk4(
            -nu * k**2,
            nonlinear,
            np.fft.rfft(start, axis=1)[:, :modes],
            step=time / steps,
            snapshots=2,
            steps_between=steps,
        )[-1]
    if not np.isfinite(end).all():
        raise FloatingPointError(
            f"The solution of Burgers' equation with `nu` = {nu} overflowed after "
            f"`steps` = {steps} on {num} points. Take more steps."
        )
    return np.fft.irfft(end, num, axis=1)


def burgers_data(
    num: int, *, grid: int = 1024, nu: float = 0.1, steps: int = 200, seed: int = 0
) -> Arrays:
    """Random starts and their solutions at time one, kept on disk.

    **Arguments:**

    - `num`: how many pairs.
    - `grid`: of how many points, `j / grid`.
    - `nu`: the viscosity. Fronts are about `4 nu` wide; the grid must resolve them.
    - `steps`: in time. With the defaults they leave a relative error of 2e-7.
    - `seed`: of the starts.

    **Returns:** `"inputs"` and `"targets"`, `(num, grid, 1)`, and `"error"`, the
    relative L2 error of the first eight targets, against twice as many steps.
    """
    for name, count in {"num": num, "grid": grid, "steps": steps}.items():
        check_count(name, count)
    check_count("seed", seed, least=0)
    if not 0 < nu < float("inf"):
        raise ValueError(f"`nu` must be positive, got {nu!r}.")

    def make() -> Arrays:
        start = random_start(num, grid, seed=seed)
        # By parts that fit the cache of a processor.
        parts = np.array_split(start, -(-num // 64))
        end = np.concatenate([solve_burgers(p, nu=nu, steps=steps) for p in parts])
        truth = solve_burgers(start[:8], nu=nu, steps=2 * steps)
        error = np.linalg.norm(end[:8] - truth) / np.linalg.norm(truth)
        return {
            "inputs": start[..., None],
            "targets": end[..., None],
            "error": np.asarray(error),
        }

    parameters = {"num": num, "grid": grid, "nu": nu, "steps": steps, "seed": seed}
    return cached("burgers", parameters, make)


def energy_above(values: np.ndarray, modes: int | Sequence[int]) -> float:
    """The share of the energy of functions that `modes` Fourier modes do not hold.

    Of all of them together, their means left out: the sum of squares at frequencies
    `|k| >= modes` along any axis, over that at all but zero. The squared relative error
    of the best approximation by those modes.

    **Arguments:**

    - `values`: periodic functions, `(rows, *grid, channels)`.
    - `modes`: as those of [`FNO`][], zero included.
    """
    axes = tuple(range(1, values.ndim - 1))
    each = (modes,) * len(axes) if isinstance(modes, int) else tuple(modes)
    energy = np.abs(np.fft.fftn(values, axes=axes)) ** 2
    energy = energy.sum(axis=(0, -1))
    inside = np.ones((), bool)
    for m, n in zip(each, energy.shape, strict=True):
        low = np.abs(np.fft.fftfreq(n, 1 / n)) < m
        inside = inside[..., None] & low
    energy[(0,) * len(axes)] = 0
    return float(energy[~inside].sum() / energy.sum())
