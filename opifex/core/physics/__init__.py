from .losses import (
    PhysicsInformedLoss as PhysicsInformedLoss,
    PhysicsLossConfig as PhysicsLossConfig,
)


__all__ = [
    "PhysicsInformedLoss",
    "PhysicsLossConfig",
]


def __dir__():
    return __all__
