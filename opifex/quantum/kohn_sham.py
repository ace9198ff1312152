import equinox as eqx
import jax
import jax.numpy as jnp

from .._custom_types import Scalar
from .functionals import AbstractFunctional, Field, hartree
from .grid import Grid
from .interaction import AbstractInteraction, Exponential
from .molecule import Molecule
from .orbitals import Blocks, fill, Filling


class KohnSham(eqx.Module):
    """Electrons in one dimension that see each other through their density.

    **Arguments:**

    - `grid`: the points that everything is given at.
    - `interaction`: of charges.
    - `threshold`: in electrons a bohr; densities below it have no exchange and
        correlation.
    - `symmetric`: whether densities are even, as those of mirror images are. It halves
        the matrices, and keeps what an asymmetric functional would break.

    ??? cite "Reference"

        W. Kohn and L. J. Sham, "Self-consistent equations including exchange and
        correlation effects", Physical Review 140, A1133, 1965.
    """

    grid: Grid = Grid()
    interaction: AbstractInteraction = Exponential()
    threshold: float = eqx.field(static=True, default=1e-12)
    symmetric: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(
                f"`threshold` must not be negative, got {self.threshold!r}."
            )

    def exchange_correlation(
        self, functional: AbstractFunctional, density: Field
    ) -> Scalar:
        """The energy of exchange and correlation, in hartree."""
        seen = jnp.where(density > self.threshold, density, 0)
        each = functional.energy_density(seen, self.grid)
        return self.grid.spacing * jnp.sum(seen * each)

    def potential(
        self, functional: AbstractFunctional, molecule: Molecule, density: Field
    ) -> Field:
        """What an electron sees, in hartree."""
        slope = jax.grad(lambda n: self.exchange_correlation(functional, n))(density)
        others = hartree(density, self.grid, self.interaction)
        attraction = molecule.attraction(self.grid, self.interaction)
        return attraction + others + slope / self.grid.spacing

    def hamiltonians(self, potential: Field) -> Blocks:
        """In the orthonormal functions of [`Grid.bases`][]."""
        kinetic = self.grid.kinetic()
        blocks = []
        for basis in self.grid.bases(self.symmetric):
            moving = jnp.asarray(basis.T @ kinetic @ basis, potential.dtype)
            squares = jnp.asarray(basis.T**2, potential.dtype)
            blocks.append(moving + jnp.diag(squares @ potential))
        return tuple(blocks)

    def density_of(self, matrices: Blocks) -> Field:
        """Electrons a bohr."""
        density = jnp.zeros(self.grid.num, matrices[0].dtype)
        bases = self.grid.bases(self.symmetric)
        for basis, matrix in zip(bases, matrices, strict=True):
            squares = jnp.asarray(basis**2, matrix.dtype)
            density = density + squares @ jnp.diagonal(matrix)
        return density / self.grid.spacing

    def filled(
        self, potential: Field, filling: Filling
    ) -> tuple[Field, Scalar, Blocks]:
        """The density in a potential; the energy of motion, less the temperature times
        the entropy; and the density matrices."""
        return self.measured(*fill(self.hamiltonians(potential), filling))

    def measured(self, matrices: Blocks, heat: Scalar) -> tuple[Field, Scalar, Blocks]:
        """What [`filled`][] gives, from what `fill` gives."""
        energy, kinetic = heat, self.grid.kinetic()
        bases = self.grid.bases(self.symmetric)
        for basis, matrix in zip(bases, matrices, strict=True):
            moving = jnp.asarray(basis.T @ kinetic @ basis, matrix.dtype)
            energy = energy + jnp.sum(moving * matrix)
        return self.density_of(matrices), energy, matrices

    def total(
        self,
        functional: AbstractFunctional,
        molecule: Molecule,
        density: Field,
        motion: Scalar,
    ) -> Scalar:
        """The energy in hartree, that of the nuclei among themselves included."""
        others = 0.5 * hartree(density, self.grid, self.interaction)
        seen = molecule.attraction(self.grid, self.interaction) + others
        electrons = motion + self.grid.spacing * jnp.sum(density * seen)
        between = molecule.repulsion(self.interaction)
        return electrons + self.exchange_correlation(functional, density) + between
