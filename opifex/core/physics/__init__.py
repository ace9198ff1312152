from .losses import (
    PhysicsInformedLoss as PhysicsInformedLoss,
    PhysicsLossConfig as PhysicsLossConfig,
)
