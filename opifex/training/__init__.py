from ..core.physics.losses import (
    PhysicsInformedLoss as PhysicsInformedLoss,
    PhysicsLossConfig as PhysicsLossConfig,
)
