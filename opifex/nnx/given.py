"""What a documented trainer was told and given."""

from collections.abc import Callable
from dataclasses import dataclass

from .._problem.at_points import AtPoints
from .._problem.supervised import RowLoss
from .._recovery.base import AbstractRecovery
from ..core.physics.losses import PhysicsInformedLoss
from ..core.training.config import TrainingConfig
from .data import Data
from .terms.quantum import has_forces


@dataclass(frozen=True)
class Given:
    """All that a trainer was told, apart from the data."""

    config: TrainingConfig
    row_loss: RowLoss
    physics: PhysicsInformedLoss | None
    custom: dict[str, Callable]
    recovery: AbstractRecovery
    listens: bool  # whether somebody wants to be called after every epoch
    conditions: AtPoints | None = None  # on a boundary, those that are not exact

    @property
    def forces(self) -> bool:
        """Whether targets are pairs of energies and forces."""
        return has_forces(self.config.quantum_config)

    @property
    def multiplies(self) -> bool:
        """Whether conservation laws have multipliers."""
        conserved = self.config.conservation_config
        return conserved is not None and conserved.multiplies


@dataclass(frozen=True)
class Sets:
    """All the data of a run."""

    train: Data
    val: Data | None
    known: dict[str, Data]

    @property
    def judged(self) -> Data:
        """The data on which metrics are measured."""
        return self.train if self.val is None else self.val
