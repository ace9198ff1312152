"""The documented door to the trainer."""

from ...nnx.trainers import Trainer as Trainer
