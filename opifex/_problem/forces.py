"""Energies of molecules, with the forces that follow from them."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .extra_terms import AbstractRowTerm
from .supervised import RowLoss


Packed = Float[Array, "rows outputs"]

# Nuclei nearer than that, in bohr, have no energy that means anything: at the distance
# of 1e-6 two protons repel each other with 1e6 hartree.
_COINCIDE = 1e-6
# More than it takes to pull any solid apart into atoms: tungsten, with 8.9 eV an atom,
# holds the record (C. Kittel, "Introduction to Solid State Physics", 8th ed., 2005,
# table 3.1).
_HARTREE_PER_ATOM = 0.33


class WithForces(eqx.Module):
    """Applies a model of energies so that it answers energies and forces.

    The answer to positions `(rows, atoms, 3)` is a matrix `(rows, 1 + 3 atoms)`: the
    energy, and then minus its derivative by each coordinate.

    **Arguments:**

    - `apply`: maps `(model, positions, key)` to energies, one a row, and the model, as
        [`Supervised`][] wants it.
    """

    apply: Callable

    def __call__(self, model: Any, positions: Any, key: Any) -> tuple[Packed, Any]:
        def energies(positions):
            energy, after = self.apply(model, positions, key)
            return jnp.reshape(energy, positions.shape[:1]), after

        energy, pull, after = eqx.filter_vjp(energies, positions, has_aux=True)
        (slope,) = pull(jnp.ones_like(energy))
        return packed(energy, -slope), after


def packed(energies: Array, forces: Array) -> Packed:
    """Energies and forces in one matrix, a row a molecule."""
    rows = energies.shape[0]
    return jnp.concatenate([energies.reshape(rows, 1), forces.reshape(rows, -1)], 1)


class OfEnergies(eqx.Module):
    """A function of predictions and targets, of their energies alone."""

    of: Callable

    def __call__(self, prediction: Packed, target: Packed) -> Array:
        return self.of(prediction[:, :1], target[:, :1])


class OnEnergies(AbstractRowTerm):
    """A term of the energies alone."""

    term: AbstractRowTerm

    def __call__(self, seen):
        one, other = seen.prediction[:, :1], seen.target[:, :1]
        return self.term(seen._replace(prediction=one, target=other))


class OnForces(AbstractRowTerm):
    """A loss of the forces alone."""

    loss: RowLoss

    def __call__(self, seen):
        return self.loss(seen.prediction[:, 1:], seen.target[:, 1:])


def check_nuclei(argument: str, positions: Any) -> None:
    """Raises if two nuclei of a molecule are in one place.

    `positions` are `(rows, atoms, 3)`, in bohr; what is not known yet, under a
    transformation of JAX, is not looked at.
    """
    if isinstance(positions, Tracer):
        return
    r = np.asarray(positions)
    first, second = np.triu_indices(r.shape[1], 1)
    near = np.linalg.norm(r[:, first] - r[:, second], axis=-1) < _COINCIDE
    if near.any():
        row, pair = np.argwhere(near)[0]
        raise ValueError(
            f"`{argument}` has two nuclei in one place, {first[pair]} and "
            f"{second[pair]} of row {row}, so there is no energy. Remove that row."
        )


def check_hartree(argument: str, energies: Any, num_atoms: int) -> None:
    """Warns if energies of one molecule can hardly be in hartree: if they differ by
    more than it takes to pull it apart into atoms."""
    if isinstance(energies, Tracer):
        return
    spread = float(np.ptp(np.asarray(energies)))
    if spread > _HARTREE_PER_ATOM * num_atoms:
        warnings.warn(
            f"The energies of `{argument}` differ by {spread:.3g}, for {num_atoms} "
            "atoms: in hartree that is more than it takes to pull any solid apart. "
            "Convert them, and forces to hartree/bohr: 1 hartree is 27.2114 eV, or "
            "627.509 kcal/mol.",
            stacklevel=2,
        )
