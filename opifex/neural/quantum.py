"""The documented network for energies of molecules, as a Flax NNX module."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from .._misc import check_count, unknown_name
from .._problem.forces import check_nuclei
from .base import StandardMLP


__all__ = [
    "QuantumMLP",
]


def __dir__():
    return __all__


Positions = Float[Array, "batch atoms 3"]

SYMMETRIES = ("none", "translation", "rotation", "permutation")
"""Each includes those before it."""


class QuantumMLP(nnx.Module):
    """The energy of a molecule, as a function of where its atoms are.

    With `symmetry="permutation"` the energy is a sum over atoms, each of them a network
    of what the atom sees: moments of the directions to the others, weighted by
    Gaussians of their distances, and contracted to scalars. Exchanging identical atoms,
    rotating, reflecting or shifting the molecule changes none of these. They tell apart
    whatever differs in distances and angles as seen from one atom; mirror images, which
    have the same energy, they do not, nor the rare pairs of structures of four and more
    neighbours that agree in all of that (Pozdnyakov et al.).

    It is smooth wherever no two atoms coincide; where two do, there is no energy, and a
    call outside `jax.jit` raises `ValueError`.

    ??? cite "References"

        J. Behler and M. Parrinello, "Generalized neural-network representation of
        high-dimensional potential-energy surfaces", Physical Review Letters 98, 146401,
        2007 (the sum over atoms); A. V. Shapeev, "Moment tensor potentials", Multiscale
        Modeling & Simulation 14(3), 2016 (the moments); S. N. Pozdnyakov et al.,
        "Incompleteness of atomic structure representations", Physical Review Letters
        125, 166001, 2020.
    """

    def __init__(
        self,
        features: Sequence[int],
        n_atoms: int,
        symmetry: str = "permutation",
        *,
        atomic_numbers: Sequence[int] | None = None,
        activation: str = "silu",
        radius: int | float = 6.0,
        num_radial: int = 8,
        param_dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """**Arguments:**

        - `features`: the sizes of the layers; the last is 1.
        - `n_atoms`: of the molecule.
        - `symmetry`: what leaves the energy as it is, each including those before it:
            `"none"`; `"translation"`: shifts; `"rotation"`: rotations and reflections;
            `"permutation"`: exchanges of identical atoms.
        - `atomic_numbers`: of each atom; the identical ones are those of one number.
            All are identical, unless given.
        - `activation`: between the layers. Take a smooth one: forces are derivatives.
        - `radius`: up to which distance atoms see each other, in the unit of the
            positions; beyond, that fades away as a Gaussian does.
        - `num_radial`: how many Gaussians of the distance there are.
        - `param_dtype`: of the parameters; that of default floats, unless given.
        - `rngs`: of the parameters.
        """
        if not features or features[-1] != 1:
            raise ValueError(
                "`features` must end in 1, the energy, got "
                f"{list(features)!r}. Append 1."
            )
        if symmetry not in SYMMETRIES:
            raise ValueError(unknown_name("symmetry", str(symmetry), SYMMETRIES))
        check_count("n_atoms", n_atoms, least=1 if symmetry != "rotation" else 2)
        check_count("num_radial", num_radial, least=2)
        if not 0 < radius < float("inf"):
            raise ValueError(f"`radius` must be positive and finite, got {radius!r}.")
        self.symmetry = symmetry
        self.n_atoms = n_atoms
        self.radius, self.num_radial = float(radius), num_radial
        self.species = _species(atomic_numbers, n_atoms)
        self.network = StandardMLP(
            [self._num_inputs(), *features],
            activation,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, positions: Positions) -> Float[Array, "batch 1"]:
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3):
            raise ValueError(
                f"`positions` must have the shape (batch, {self.n_atoms}, 3), got "
                f"{positions.shape}. Write `positions[None]` for a single molecule."
            )
        check_nuclei("positions", positions)
        inputs = jax.vmap(self._inputs)(positions)
        if self.symmetry != "permutation":
            return self.network(inputs)
        rows = inputs.reshape(-1, inputs.shape[-1])
        return jnp.sum(self.network(rows).reshape(-1, self.n_atoms, 1), axis=1)

    def compute_energy(self, positions: Positions) -> Float[Array, "batch 1"]:
        """The energies of molecules."""
        return self(positions)

    def compute_forces(self, positions: Positions) -> Positions:
        """Minus the derivative of the energy by the positions, of every atom."""
        return -jax.grad(lambda r: jnp.sum(self(r)))(positions)

    def _num_inputs(self) -> int:
        if self.symmetry in ("none", "translation"):
            return 3 * self.n_atoms
        if self.symmetry == "rotation":
            return self.num_radial * self.n_atoms * (self.n_atoms - 1) // 2
        kinds = max(self.species) + 1
        channels = kinds * self.num_radial
        return channels + channels * (channels + 1) + kinds * (kinds > 1)

    def _inputs(self, positions: Float[Array, "atoms 3"]) -> Float[Array, "..."]:
        """What the network sees: a row for the molecule, or one for each atom."""
        if self.symmetry == "none":
            return positions.reshape(-1)
        if self.symmetry == "translation":
            return (positions - jnp.mean(positions, axis=0)[None]).reshape(-1)
        if self.symmetry == "rotation":
            i, j = np.triu_indices(self.n_atoms, 1)
            distances = jnp.linalg.norm(positions[i] - positions[j], axis=-1)
            return self._radial(distances).reshape(-1)
        return self._environments(positions)

    def _radial(self, r: Float[Array, "*pairs"]) -> Float[Array, "*pairs radial"]:
        """Gaussians of the distance, as wide as their centres are apart."""
        width = self.radius / self.num_radial
        place = jnp.arange(1, self.num_radial + 1, dtype=r.dtype)
        place = place.reshape((1,) * r.ndim + (-1,))
        return jnp.exp(-0.5 * (r[..., None] / width - place) ** 2)

    def _environments(
        self, positions: Float[Array, "atoms 3"]
    ) -> Float[Array, "atoms inputs"]:
        """The invariants of what each atom sees."""
        n = self.n_atoms
        others = np.array([[j for j in range(n) if j != i] for i in range(n)], int)
        away = positions[others] - positions[:, None]
        distance = jnp.linalg.norm(away, axis=-1)
        unit = away / distance[..., None]
        kind = np.eye(max(self.species) + 1)[list(self.species)]
        theirs = jnp.asarray(kind[others], positions.dtype)
        # Of each kind of neighbour, and each Gaussian, a channel of its own.
        seen = _sum_of("ijs,ijr->ijsr", theirs, self._radial(distance))
        seen = seen.reshape(n, n - 1, kind.shape[1] * self.num_radial)
        dipole = _sum_of("ijc,ija->ica", seen, unit)
        quadrupole = _sum_of("ijc,ija,ijb->icab", seen, unit, unit)
        parts = [
            jnp.sum(seen, axis=1),
            _upper(_sum_of("ica,ida->icd", dipole, dipole)),
            _upper(_sum_of("icab,idab->icd", quadrupole, quadrupole)),
        ]
        if kind.shape[1] > 1:
            parts.append(jnp.asarray(kind, positions.dtype))
        return jnp.concatenate(parts, axis=1)


def _sum_of(subscripts: str, *arrays: Array) -> Array:
    # In full precision: accelerators round products of float32 to ten bits, and what
    # is invariant would be so to three digits.
    return jnp.einsum(subscripts, *arrays, precision=jax.lax.Precision.HIGHEST)


def _upper(
    products: Float[Array, "atoms channels channels"],
) -> Float[Array, "atoms pairs"]:
    i, j = np.triu_indices(products.shape[-1])
    return products[:, i, j]


def _species(atomic_numbers: Sequence[int] | None, n_atoms: int) -> tuple[int, ...]:
    """The number of the kind of each atom."""
    if atomic_numbers is None:
        return (0,) * n_atoms
    if len(atomic_numbers) != n_atoms:
        raise ValueError(
            f"`atomic_numbers` must hold one number an atom, {n_atoms} in all, got "
            f"{list(atomic_numbers)!r}."
        )
    for i, number in enumerate(atomic_numbers):
        check_count(f"atomic_numbers[{i}]", number)
    kinds = sorted(set(atomic_numbers))
    return tuple(kinds.index(number) for number in atomic_numbers)
