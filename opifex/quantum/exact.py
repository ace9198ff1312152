"""Two interacting electrons, exactly: a single particle in two dimensions."""

import warnings
from typing import NamedTuple

import jax
import numpy as np
import scipy.linalg
from scipy.sparse.linalg import LinearOperator, lobpcg

from .grid import Grid
from .interaction import AbstractInteraction
from .molecule import Molecule


class Exact(NamedTuple):
    """The ground state of two electrons.

    - `energy`: in hartree, with that of the nuclei.
    - `density`: electrons a bohr, at the points of the grid.
    - `residual`: the norm of `H psi - E psi`: some eigenvalue is that close.
    """

    energy: float
    density: np.ndarray
    residual: float


def solve_exactly(
    molecule: Molecule,
    grid: Grid,
    interaction: AbstractInteraction,
    *,
    tolerance: float = 1e-7,
) -> Exact:
    """The ground state of two interacting electrons, on the grid.

    The wave function is a matrix over the two places, symmetric because the spins are
    opposite. Its eigenvalue problem is solved without a matrix, by LOBPCG, in the basis
    of the orbitals of a single electron, where the part without interaction is diagonal
    and so preconditions the rest. The differences and the quadrature are those of
    [`KohnSham`][], so that energies on one grid can be compared.

    **Arguments:**

    - `molecule`: with two electrons.
    - `tolerance`: of the residual, in hartree. The error of the energy is of the order
        of its square.

    **Raises:** `ValueError` for another number of electrons; `RuntimeError` if the
    tolerance is not reached.

    ??? cite "Reference"

        A. V. Knyazev, "Toward the optimal preconditioned eigensolver: locally optimal
        block preconditioned conjugate gradient method", SIAM Journal on Scientific
        Computing 23(2), 2001.
    """
    if molecule.electrons != 2:
        raise ValueError(
            f"`molecule` has {molecule.electrons} electrons: exact energies are those "
            "of two. Use `solve`."
        )
    n = grid.num
    with jax.enable_x64(True):  # whatever the precision of those that are compared
        x = grid.points
        attraction = np.asarray(molecule.attraction(grid, interaction), np.float64)
        apart = x[:, None] - x[None]
        repulsion = np.asarray(interaction.sampled(apart, grid.spacing), np.float64)
    levels, orbitals = scipy.linalg.eigh(grid.kinetic() + np.diag(attraction))
    sums = levels[:, None] + levels[None]

    def apply(flat):
        c = flat.reshape(n, n)
        there = orbitals @ c @ orbitals.T
        return (sums * c + orbitals.T @ (repulsion * there) @ orbitals).reshape(-1)

    def precondition(flat):
        # About as far above the ground state as the repulsion lifts it.
        distance = np.maximum(sums - sums[0, 0], 0) + 0.3
        return (flat.reshape(n, n) / distance).reshape(-1)

    start = np.zeros((n, n))
    start[0, 0] = 1
    start[1, 1] = -0.3  # which lets the electrons avoid each other
    shape = (n * n, n * n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the residual is checked below
        _, vectors = lobpcg(
            LinearOperator(shape, matvec=apply, dtype=np.float64),  # type: ignore[call-arg]
            start.reshape(-1, 1),
            M=LinearOperator(shape, matvec=precondition, dtype=np.float64),  # type: ignore[call-arg]
            tol=tolerance,
            maxiter=200,
            largest=False,
        )
    c = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
    energy = float(c @ apply(c))
    residual = float(np.linalg.norm(apply(c) - energy * c))
    if not residual < 10 * tolerance:
        raise RuntimeError(
            f"The exact solution did not converge: its residual is {residual:.1e}, "
            f"above `tolerance` = {tolerance:.1e}. Raise it."
        )
    psi = orbitals @ c.reshape(n, n) @ orbitals.T
    density = 2 * np.sum(psi**2, axis=1) / grid.spacing
    energy += float(molecule.repulsion(interaction))
    return Exact(energy, density, residual)
