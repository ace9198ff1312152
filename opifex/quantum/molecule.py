from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Scalar
from .._misc import check_count, check_finite
from .grid import Grid
from .interaction import AbstractInteraction


class Molecule(eqx.Module):
    """Nuclei on a line, and electrons.

    `jax.vmap` maps over several of one formula: over their `positions`.
    """

    positions: Float[Array, "*molecules nuclei"]
    charges: Float[Array, "*molecules nuclei"]
    electrons: int = eqx.field(static=True)

    def __init__(
        self,
        positions: ArrayLike | Sequence,
        charges: ArrayLike | Sequence | None = None,
        *,
        electrons: int | None = None,
    ):
        """**Arguments:**

        - `positions`: of the nuclei, in bohr.
        - `charges`: of each; one, unless given.
        - `electrons`: how many; as many as make the molecule neutral, unless given.

        **Raises:** `ValueError` for coincident nuclei or charges that are not positive.
        """
        dtype = jnp.result_type(float)
        self.positions = jnp.asarray(positions, dtype)
        ones = jnp.ones_like(self.positions)
        given = ones if charges is None else jnp.asarray(charges, dtype)
        self.charges = jnp.broadcast_to(given, self.positions.shape)
        if not isinstance(self.charges, Tracer) and (self.charges <= 0).any():
            raise ValueError(
                f"`charges` must be positive, got {self.charges}. Nuclei attract."
            )
        if electrons is None:
            first = np.asarray(self.charges).reshape(-1, ones.shape[-1])[0]
            electrons = round(float(first.sum()))
        self.electrons = electrons
        check_count("electrons", electrons)
        if isinstance(self.positions, Tracer) or isinstance(self.charges, Tracer):
            return
        check_finite("positions", self.positions)
        gaps = np.diff(np.sort(np.asarray(self.positions), axis=-1), axis=-1)
        if gaps.size and gaps.min() < 1e-6:
            raise ValueError(
                f"`positions` holds coincident nuclei: {self.positions}. Move them "
                "apart, or give one nucleus with both charges."
            )

    def attraction(
        self, grid: Grid, interaction: AbstractInteraction
    ) -> Float[Array, " grid"]:
        """The potential of the nuclei for an electron, in hartree."""
        away = grid.points[:, None] - self.positions[None]
        return -jnp.sum(
            self.charges[None] * interaction.sampled(away, grid.spacing), axis=1
        )

    def repulsion(self, interaction: AbstractInteraction) -> Scalar:
        """The energy of the nuclei among themselves, in hartree."""
        i, j = np.triu_indices(self.positions.shape[-1], 1)
        away = self.positions[i] - self.positions[j]
        return jnp.sum(self.charges[i] * self.charges[j] * interaction(away))
