"""The documented doors to training from coarse to fine."""

from .coarse_to_fine import (
    CascadeTrainer as CascadeTrainer,
    create_network_hierarchy as create_network_hierarchy,
    MultilevelAdam as MultilevelAdam,
    MultilevelConfig as MultilevelConfig,
    prolongate as prolongate,
    restrict as restrict,
)
from .multilevel_fno import (
    create_fno_hierarchy as create_fno_hierarchy,
    create_mode_hierarchy as create_mode_hierarchy,
    MultilevelFNOConfig as MultilevelFNOConfig,
    MultilevelFNOTrainer as MultilevelFNOTrainer,
    prolongate_fno_modes as prolongate_fno_modes,
    restrict_fno_modes as restrict_fno_modes,
)


__all__ = [
    "CascadeTrainer",
    "MultilevelAdam",
    "MultilevelConfig",
    "MultilevelFNOConfig",
    "MultilevelFNOTrainer",
    "create_fno_hierarchy",
    "create_mode_hierarchy",
    "create_network_hierarchy",
    "prolongate",
    "prolongate_fno_modes",
    "restrict",
    "restrict_fno_modes",
]


def __dir__():
    return __all__
