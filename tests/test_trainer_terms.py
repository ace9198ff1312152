"""What the configuration adds to the loss, and to the history."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flax import nnx

import opifex as opx
from opifex.core.conditions import DirichletBC, NeumannBC
from opifex.core.training.config import (
    BoundaryConfig,
    ConservationConfig,
    LossConfig,
    MetricsTrackingConfig,
    MultiScaleConfig,
    QuantumTrainingConfig,
)
from opifex.core.training.trainer import Trainer
from opifex.training import PhysicsInformedLoss, PhysicsLossConfig
from opifex.training.basic_trainer import BasicTrainer

from .trainer_models import config, line, mlp, Net, STILL, X, Y


# Physics.


def test_conservation():
    """Against the quantities of a row with four points, worked out by hand."""
    u = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    x = jnp.ones((1, 4))
    conserved = ConservationConfig(
        laws=["mass", "energy", "momentum", "symmetry"],
        mass_tolerance=0.25,
        weight=2.0,
        quantities={"first": lambda x, u: u[0, 0] * x[0, 0]},
    )
    trainer = Trainer(line(1.0), config(conservation_config=conserved, num_epochs=1,
                                        optimizer=STILL))  # fmt: skip
    _, history = trainer.train((x, u))
    # Means 1 and 2.5; half the mean squares 0.5 and 3.75; f(-x) = -1, f(x) = 1.
    drifts = {"mass": 1.5, "momentum": 1.5, "energy": 3.25, "first": 0.0,
              "symmetry": 4.0}  # fmt: skip
    for law, drift in drifts.items():
        np.testing.assert_allclose(history[f"drift/{law}"], [drift], 1e-12)
        beyond = drift - (0.25 if law == "mass" else 0)
        np.testing.assert_allclose(
            history[f"conservation/{law}"], [2 * beyond**2], 1e-12
        )
    # Targets of either sign, at random: the best fit is zero, unless the energy counts.
    x, signs = (
        jnp.linspace(-1, 1, 64)[:, None],
        jr.rademacher(jr.key(0), (64, 1), float),
    )
    found = {}
    for weight in (0.0, 10.0):
        law = ConservationConfig(laws=["energy"], weight=weight)
        options = config(conservation_config=law, num_epochs=60, learning_rate=1e-2)
        _, history = Trainer(mlp(), options).train((x, signs))
        found[weight] = history["drift/energy"][-1]
    assert found[0.0] > 0.4 and found[10.0] < 0.1


def test_scales():
    """Restrictions of five points, by hand: to the mean of four and the last."""
    u, x = jnp.array([[1.0, 2.0, 3.0, 4.0, 5.0]]), jnp.ones((1, 5))
    scales = MultiScaleConfig(
        scales=["a", "b", "c"], weights={"a": 0.5}, coupling=True,
        operators={"b": lambda u: 2 * u[::2]},
    )  # fmt: skip
    trainer = Trainer(line(0.0), config(multiscale_config=scales, num_epochs=1))
    _, history = trainer.train((x, u))
    expected = {"data": 11.0, "scale/c": 11.0, "scale/b": 4 * (1 + 9 + 25) / 3,
                "scale/a": 0.5 * (2.5**2 + 5**2) / 2}  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], [value], 1e-12, err_msg=name)
    # At u = x = 1: the finest averaged is 1 and "b" is 2; averaged again it is 2.
    one = Trainer(line(1.0), config(multiscale_config=scales, num_epochs=1))
    _, history = one.train((x, u))
    np.testing.assert_allclose(history["coupling/b-c"], [1.0])
    np.testing.assert_allclose(history["coupling/a-b"], [1.0])


def test_metrics_tracking():
    tracked = MetricsTrackingConfig(
        metrics=["mse", "mae", "max_error", "relative_l2"], frequency=2
    )
    model, history = Trainer(mlp(), config(metrics_tracking_config=tracked)).train(
        (X, Y), (X[:7], Y[:7])
    )
    error = np.asarray(jax.vmap(model)(X[:7]) - Y[:7])
    expected = {
        "mse": np.mean(error**2), "mae": np.abs(error).mean(),
        "max_error": np.abs(error).max(),
        "relative_l2": np.linalg.norm(error) / np.linalg.norm(Y[:7]),
    }  # fmt: skip
    for name, value in expected.items():
        known = np.isfinite(history[name])
        assert known.tolist() == [False, True] * 3
        np.testing.assert_allclose(history[name][-1], value, 1e-10)


def test_quantum_metrics():
    x = jnp.array([[1.0], [2.0]])
    quantum = QuantumTrainingConfig(chemical_accuracy_target=2.0)
    trainer = Trainer(
        line(0.0),
        config(quantum_config=quantum, num_epochs=1, optimizer=STILL),
    )
    # Errors of 1 and 3 kcal/mol.
    _, history = trainer.train((x, jnp.array([[1.0], [3.0]]) / 627.5094740631))
    np.testing.assert_allclose(history["energy_error_kcal_mol"], [2.0], 1e-12)
    np.testing.assert_allclose(history["chemically_accurate"], [0.5])


def test_known_values_and_custom_losses():
    """Each with its weight; without a physics loss they are terms beside the data."""
    trainer = Trainer(
        line(), config(boundary_config=BoundaryConfig(weight=3.0), num_epochs=1,
                       optimizer=STILL),
    )  # fmt: skip
    trainer.register_custom_loss("mine", lambda f, x, y: (f(x) + y)[:, 0] ** 2)
    ends, values = jnp.array([[-1.0], [1.0]]), jnp.array([[0.0], [1.0]])
    _, history = trainer.train(
        (X, Y), boundary_data=(ends, values), initial_data=(ends, -values)
    )
    expected = {
        "data": jnp.mean((X / 2 - Y) ** 2), "mine": jnp.mean((X / 2 + Y) ** 2),
        "boundary": 3 * 0.25, "initial": (0.25 + 2.25) / 2,
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], [value], 1e-12, err_msg=name)
    np.testing.assert_allclose(
        history["train_loss"], [sum(map(float, expected.values()))], 1e-12
    )


def test_values_on_the_boundary_of_a_domain():
    """The model x / 2 on (0, 2), which should be 3 at 0 and x at 2."""
    conditions = [DirichletBC("left", 3.0), DirichletBC("right", lambda x: x)]
    boundary = BoundaryConfig(
        weight=2.0, domain=opx.Interval(0.0, 2.0), conditions=conditions
    )
    trainer = Trainer(
        line(), config(boundary_config=boundary, num_epochs=1, optimizer=STILL)
    )
    _, history = trainer.train((X, Y))
    np.testing.assert_allclose(history["boundary"], [2 * (9 + 1) / 2], 1e-12)
    with pytest.raises(ValueError, match="`boundary_data` contradicts"):
        trainer.train((X, Y), boundary_data=(X, Y))
    for refused in (
        {"enforce": True, "conditions": conditions},
        {"conditions": [NeumannBC("left", 0.0)]},
    ):
        bad = BoundaryConfig(domain=opx.Interval(0.0, 2.0), **refused)
        with pytest.raises(NotImplementedError, match="opifex.PDE"):
            Trainer(line(), config(boundary_config=bad)).train((X, Y))


def _decay(u, t):
    return jax.grad(lambda t: u(t[None]))(t) + u(t[None])


def test_physics_loss():
    """u' = -u with u(0) = 1; the batches of 8 fill up the last from the 20 points."""
    tracked = MetricsTrackingConfig(metrics=["physics_residual"], frequency=100)
    t = jnp.linspace(0, 1, 20)[:, None]
    trainer = BasicTrainer(
        Net(nnx.Rngs(0)),
        config(num_epochs=200, learning_rate=1e-2, metrics_tracking_config=tracked,
               validation_frequency=100, loss_config=LossConfig(initial_weight=4.0)),
    )  # fmt: skip
    trainer.set_physics_loss(PhysicsInformedLoss(pde_residual=_decay))
    start = jnp.zeros((1, 1), jnp.float32), jnp.ones((1, 1), jnp.float32)
    t32 = t.astype(jnp.float32)
    model, history = trainer.train(
        (t32, None), (t32, jnp.exp(-t32)), initial_data=start
    )
    assert np.max(np.abs(model(t32) - jnp.exp(-t32))) < 0.02
    error = jnp.mean((model(t32) - jnp.exp(-t32)) ** 2)
    np.testing.assert_allclose(history["val_loss"][-1], error, 1e-3)
    u = lambda t: model(t[None, None])[0, 0]
    left = jax.vmap(lambda t: jax.grad(u)(t) + u(t))(t32[:, 0])
    np.testing.assert_allclose(
        history["physics_residual"][-1], jnp.sqrt(jnp.mean(left**2)), 1e-3
    )
    assert set(history) >= {"interior", "initial"}


def test_weights_of_the_physics_loss():
    """At u = t / 2, by hand: interior (1/2 + t/2)^2, data (t/2 - 1)^2."""
    t = jnp.array([[0.0], [1.0]])
    loss = PhysicsInformedLoss(
        pde_residual=_decay, config=PhysicsLossConfig(data_weight=2.0)
    )
    trainer = Trainer(line(), config(loss_config=LossConfig(physics_weight=3.0)))
    trainer.set_physics_loss(loss)
    found = trainer.validation_step(t, jnp.ones((2, 1)))
    np.testing.assert_allclose(found, 3 * (0.25 + 1) / 2 + 2 * (1 + 0.25) / 2, 1e-12)
