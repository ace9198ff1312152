"""The documented door to the trainers."""

from ..nnx.trainers import (
    BasicTrainer as BasicTrainer,
    ModularTrainer as ModularTrainer,
)
