import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex.core.training.config import TrainingConfig
from opifex.training.basic_trainer import ModularTrainer, Trainer  # noqa: F401
from opifex.training.recovery import ErrorRecoveryManager


def test_translation():
    made = ErrorRecoveryManager(
        {
            "max_retries": 5, "gradient_clip_threshold": 1.0,
            "loss_explosion_threshold": 100.0, "lr_factor": 0.25,
        }
    ).recovery  # fmt: skip
    assert isinstance(made, opx.Backtrack)
