"""Flow through a porous medium: from the permeability to the pressure."""

from typing import Literal

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import splu

from ..._misc import check_count
from .cache import Arrays, cached


# Modes of the random functions along each axis, the same ones on every grid.
_MODES = 128


def random_medium(num: int, grid: int, *, seed: int) -> np.ndarray:
    """Permeabilities of two values, `(num, grid, grid)`, on `[0, 1]^2` with its edges.

    12 where a random function is positive and 3 where it is not; the function is drawn
    from `N(0, (-Laplace + 9)^-2)` with Neumann conditions and mean zero: the sum over
    `k, l` of `a / (pi^2 (k^2 + l^2) + 9) cos(pi k x) cos(pi l y)` with `a` standard
    normal (cosines of norm one), up to 127 each. The same media on every grid.

    ??? cite "Reference"

        Z. Li et al., "Fourier neural operator for parametric partial differential
        equations", ICLR 2021, section 5.2.
    """
    k = np.arange(_MODES)
    deviation = 1 / (np.pi**2 * (k[:, None] ** 2 + k**2) + 9)
    deviation[0, 0] = 0
    norm = np.where(k > 0, np.sqrt(2), 1)
    cosines = norm * np.cos(np.pi * np.linspace(0, 1, grid)[:, None] * k)
    rng = np.random.default_rng(seed)
    fields = (
        cosines @ (deviation * rng.standard_normal((_MODES, _MODES))) @ cosines.T
        for _ in range(num)
    )
    return np.stack([np.where(field >= 0, 12.0, 3.0) for field in fields])


def solve_darcy(
    a: np.ndarray,
    source: np.ndarray | float = 1.0,
    *,
    faces: Literal["harmonic", "arithmetic"] = "harmonic",
) -> np.ndarray:
    """`-div(a grad u) = f` on `[0, 1]^2`, `u = 0` on its edges.

    By finite volumes around the points of the grid: the flux through a face is the
    difference across it times the mean of `a`, and the sparse system is solved
    directly. Of second order where `a` is smooth.

    **Arguments:**

    - `a`: at the points, the edges included, `(n, n)`; positive.
    - `source`: `f`, there, or a constant.
    - `faces`: the mean. The harmonic one is exact in one dimension where `a` jumps
        half-way between points; the arithmetic one is that of the published data.

    **Returns:** `u` at the points, `(n, n)`.
    """
    n = len(a)
    if a.shape != (n, n) or n < 3 or not (np.isfinite(a) & (a > 0)).all():
        raise ValueError(
            "`a` must hold positive numbers on a square of at least three points a "
            f"side, got shape {a.shape} and values from {np.min(a)} to {np.max(a)}."
        )
    if faces not in ("harmonic", "arithmetic"):
        raise ValueError(f"`faces` is 'harmonic' or 'arithmetic', got {faces!r}.")
    means = {
        "harmonic": lambda p, q: 2 * p * q / (p + q),
        "arithmetic": lambda p, q: (p + q) / 2,
    }
    x = means[faces](a[:-1, 1:-1], a[1:, 1:-1])  # (n - 1, n - 2)
    y = means[faces](a[1:-1, :-1], a[1:-1, 1:])
    diagonal = x[:-1] + x[1:] + y[:, :-1] + y[:, 1:]
    place = np.arange(diagonal.size).reshape(diagonal.shape)
    entries = (
        (place, place, diagonal),
        *(
            entry
            for p, q, flux in (
                (place[:-1], place[1:], -x[1:-1]),
                (place[:, :-1], place[:, 1:], -y[:, 1:-1]),
            )
            for entry in ((p, q, flux), (q, p, flux))
        ),
    )
    rows, columns, values = (
        np.concatenate([part.ravel() for part in parts])
        for parts in zip(*entries, strict=True)
    )
    matrix = sparse.csc_array((values, (rows, columns)))
    forcing = np.broadcast_to(source, (n, n))[1:-1, 1:-1] / (n - 1) ** 2
    options = {"SymmetricMode": True}
    factors = splu(
        matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options
    )
    u = np.zeros((n, n))
    u[1:-1, 1:-1] = factors.solve(forcing.ravel()).reshape(n - 2, n - 2)
    return u


def darcy_data(num: int, *, grid: int = 85, seed: int = 0) -> Arrays:
    """Random media and the pressures in them, for a source of one, kept on disk.

    **Arguments:**

    - `num`: how many pairs.
    - `grid`: points a side, the edges included.
    - `seed`: of the media.

    **Returns:** `"inputs"` and `"targets"`, `(num, grid, grid, 1)`, and `"error"`, the
    relative L2 error of the first four targets, against a grid twice as fine: of first
    order at best, since the media jump.
    """
    for name, count in {"num": num, "grid": grid}.items():
        check_count(name, count)
    check_count("seed", seed, least=0)

    def make() -> Arrays:
        media = random_medium(num, grid, seed=seed)
        pressures = np.stack([solve_darcy(a) for a in media])
        few = min(num, 4)
        finer = random_medium(few, 2 * grid - 1, seed=seed)
        truth = np.stack([solve_darcy(a)[::2, ::2] for a in finer])
        error = np.linalg.norm(pressures[:few] - truth) / np.linalg.norm(truth)
        return {
            "inputs": media[..., None],
            "targets": pressures[..., None],
            "error": np.asarray(error),
        }

    return cached("darcy", {"num": num, "grid": grid, "seed": seed}, make)
