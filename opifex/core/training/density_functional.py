"""The documented configurations of density functionals and of self-consistency."""

import dataclasses
from collections.abc import Callable, Sequence

from ..._misc import check_count, check_number
from ...quantum.grid import Grid
from ...quantum.interaction import AbstractInteraction, Exponential, SoftCoulomb
from ...quantum.mixing import DIIS, Linear
from ...quantum.problem import LossWeights
from ...quantum.scf import DIFFERENTIATE, ON_NONCONVERGED, SCF
from .._checks import change, check_flag, check_names
from .._strict import strict


INTERACTIONS: dict[str, Callable[[], AbstractInteraction]] = {
    "exponential": Exponential,
    "soft_coulomb": SoftCoulomb,
}
MIXINGS = ("linear", "diis")


@strict
@dataclasses.dataclass(frozen=True)
class DFTConfig:
    """What a density functional is trained on: molecules in one dimension, and what
    counts how much in the loss.

    **Arguments:**

    - `grid_points`, `grid_spacing`, `difference_order`: of [`opifex.quantum.Grid`][];
        the spacing is in bohr.
    - `interaction`: `"exponential"` or `"soft_coulomb"`.
    - `charges`: of the nuclei; two of charge one, unless given.
    - `electrons`: how many; as many as make the molecule neutral, unless given.
    - `density_threshold`: in electrons a bohr; densities below it have no exchange and
        correlation.
    - `energy_weight`, `density_weight`, `trajectory_weight`: of the squared errors of
        energies, of densities, and of the energies before the last iteration, each an
        electron.
    - `trajectory_discount`, `trajectory_start`: by what the count of an iteration is
        multiplied for each that lies between it and the last, and the first that
        counts, from zero.
    """

    grid_points: int = 257
    grid_spacing: int | float = 0.16
    difference_order: int = 8
    interaction: str = "exponential"
    charges: Sequence[int | float] = (1.0, 1.0)
    electrons: int | None = None
    density_threshold: int | float = 1e-12
    energy_weight: int | float = 1.0
    density_weight: int | float = 1.0
    trajectory_weight: int | float = 0.0
    trajectory_discount: int | float = 0.9
    trajectory_start: int = 9

    def __post_init__(self):
        check_names("interaction", [self.interaction], INTERACTIONS)
        check_number("density_threshold", self.density_threshold, 0)
        charges = tuple(float(z) for z in self.charges)
        for i, z in enumerate(charges):
            check_number(f"charges[{i}]", z, 0, open_low=True)
        for name in ("energy", "density", "trajectory"):
            check_number(f"{name}_weight", getattr(self, f"{name}_weight"), 0)
        check_count("trajectory_start", self.trajectory_start, least=0)
        electrons = round(sum(charges)) if self.electrons is None else self.electrons
        check_count("electrons", electrons)
        change(self, charges=charges, electrons=electrons)
        self.make_grid()
        self.make_weights()

    def make_grid(self) -> Grid:
        """The grid."""
        return Grid(self.grid_points, float(self.grid_spacing), self.difference_order)

    def make_weights(self) -> LossWeights:
        """What counts how much."""
        return LossWeights(
            float(self.energy_weight),
            float(self.density_weight),
            float(self.trajectory_weight),
            float(self.trajectory_discount),
            self.trajectory_start,
        )


@strict
@dataclasses.dataclass(frozen=True)
class SCFConfig:
    """How self-consistency is sought, and differentiated.

    **Arguments:** those of [`opifex.quantum.SCF`][], with

    - `mixing`: `"linear"` or `"diis"`.
    - `mixing_alpha`: how much of the change of the density is added.
    - `mixing_decay`: a factor of it for each iteration, for `"linear"`; 1, unless
        given.
    - `diis_depth`: how many densities are remembered, for `"diis"`; 6, unless given.
    - `symmetric`: whether molecules are mirror images about zero, and densities are
        kept so.
    """

    max_iterations: int = 50
    energy_tolerance: int | float = 1e-8
    density_tolerance: int | float = 1e-6
    mixing: str = "linear"
    mixing_alpha: int | float = 0.5
    mixing_decay: int | float | None = None
    diis_depth: int | None = None
    level_shift: int | float = 0.0
    smearing: int | float = 0.0
    symmetric: bool = False
    differentiate: str = "unroll"
    on_nonconverged: str = "error"

    def __post_init__(self):
        check_names("mixing", [self.mixing], MIXINGS)
        check_names("differentiate", [self.differentiate], DIFFERENTIATE)
        check_names("on_nonconverged", [self.on_nonconverged], ON_NONCONVERGED)
        check_flag("symmetric", self.symmetric)
        owners = {"mixing_decay": "linear", "diis_depth": "diis"}
        for name, owner in owners.items():
            value = getattr(self, name)
            if value is not None and self.mixing != owner:
                raise ValueError(
                    f"`{name}` = {value!r} has no meaning for `mixing` = "
                    f"{self.mixing!r}. Leave it out, or choose {owner!r}."
                )
        self.make_scf()

    def make_scf(self) -> SCF:
        """The settings of [`opifex.quantum.solve`][]."""
        alpha = float(self.mixing_alpha)
        if self.mixing == "linear":
            decay = 1.0 if self.mixing_decay is None else self.mixing_decay
            mixing = Linear(alpha, float(decay))
        else:
            mixing = DIIS(alpha, 6 if self.diis_depth is None else self.diis_depth)
        return SCF(
            self.max_iterations,
            float(self.energy_tolerance),
            float(self.density_tolerance),
            mixing,
            float(self.level_shift),
            float(self.smearing),
            self.differentiate,
            self.on_nonconverged,
        )
