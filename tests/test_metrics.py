"""The documented metrics against closed forms, and the safe calls of models."""

import time
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import opifex as opx
from opifex.core.training.config import ConservationConfig, QuantumTrainingConfig
from opifex.neural.base import StandardMLP
from opifex.neural.quantum import QuantumMLP
from opifex.training import metrics as door, PhysicsInformedLoss
from opifex.training.metrics import AdvancedMetricsCollector as Collector
from opifex.training.utils import (
    ModelCallError,
    safe_compute_energy,
    safe_compute_forces,
    safe_model_call,
)

from .helpers import mlp, regression


class Affine(eqx.Module):
    """`x @ weight + shift`, for whole batches."""

    weight: jax.Array
    shift: jax.Array

    def __call__(self, x):
        return x @ self.weight + self.shift[None]


def affine(shift=0.0):
    return Affine(jnp.eye(2), jnp.full(2, float(shift)))


X = jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, -2.0]])


def test_errors_and_drifts():
    # The model answers the inputs plus one; the truth is the inputs.
    found = Collector().collect_physics_metrics(affine(1.0), X, X)
    expected = {
        "mse": 1.0,
        "mae": 1.0,
        "max_error": 1.0,
        "relative_l2": np.sqrt(6 / 34),
        # Each row is a field at two points, of weight one half each.
        "drift/mass": 1.0,
        "drift/momentum": 1.0,
        # Half the mean of (x + 1)^2 - x^2 = 2 x + 1: 2, 4 and -1/2.
        "drift/energy": (2.0 + 4.0 + 0.5) / 3,
    }
    assert set(found) == set(expected)
    assert all(type(value) is float for value in found.values())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


def test_configured_laws_and_energies():
    laws = ConservationConfig(
        laws=["mass", "symmetry"],
        quantities={"charge": lambda x, u: jnp.sum(u**3)},
        quadrature_weights=[2.0, 3.0],
    )
    energies = QuantumTrainingConfig(chemical_accuracy_target=700.0)
    collector = Collector(conservation_config=laws, quantum_config=energies)
    found = collector.collect_physics_metrics(affine(1.0), X, X)
    assert np.isclose(found["drift/mass"], 5.0)
    # f(-x) - f(x) = -2 x, of which these are the norms.
    norms = 2 * np.sqrt([5.0, 25.0, 4.0])
    assert np.isclose(found["drift/symmetry"], np.mean(norms))
    cubes = [8 + 27 - 1 - 8, 64 + 125 - 27 - 64, abs(1 - 1 + 8)]
    assert np.isclose(found["drift/charge"], np.mean(cubes))
    assert np.isclose(found["energy_error_kcal_mol"], 627.5094740631)
    assert found["chemically_accurate"] == 1.0
    target = X.at[0].add(jnp.array([1.0, 1.0]))
    found = collector.collect_physics_metrics(affine(1.2), X, target)
    # Now the errors are 0.2, 1.2 and 1.2 hartree.
    assert np.isclose(found["chemically_accurate"], 1 / 3)


def test_models_that_declare_energies():
    model = QuantumMLP([4, 1], 2, rngs=nnx.Rngs(0))
    r = jr.normal(jr.key(0), (3, 2, 3))
    y = model(r) + 1 / 627.5094740631
    found = Collector().collect_physics_metrics(model, r, y)
    assert np.isclose(found["energy_error_kcal_mol"], 1.0, rtol=1e-10)
    assert "energy_error_kcal_mol" not in Collector().collect_physics_metrics(
        affine(), X, X
    )


def test_evaluation_mode_and_untouched_models():
    model = StandardMLP([2, 50, 2], dropout_rate=0.5, rngs=nnx.Rngs(0))
    before = jax.tree.leaves(jax.tree.map(jnp.copy, nnx.state(model, nnx.Param)))
    one, other = (Collector().collect_physics_metrics(model, X, X) for _ in range(2))
    assert one == other
    for old, new in zip(
        before, jax.tree.leaves(nnx.state(model, nnx.Param)), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert not jnp.array_equal(model(X), model(X))  # it still is in training mode


def test_physics_residual():
    # Of u(x, t) = x + t, u_t + 2 u_x - x leaves 3 - x over.
    def equation(u, x, t):
        u_x, u_t = jax.grad(lambda p: u(p))(jnp.stack([x, t]))
        return u_t + 2 * u_x - x

    model = Affine(jnp.ones((2, 1)), jnp.zeros(1))
    config = PhysicsInformedLoss().config
    loss = PhysicsInformedLoss(equation, config=replace(config, physics_weight=9.0))
    found = Collector().collect_physics_metrics(model, X, None, loss)
    left = 3 - np.array([1.0, 3.0, 0.0])
    assert found == {"physics_residual": pytest.approx(np.sqrt(np.mean(left**2)))}
    # A model of one point is mapped over them, and a function is taken as it is.
    found = Collector().collect_physics_metrics(mlp(jr.key(0), 2), X, None, loss)
    assert np.isfinite(found["physics_residual"])
    own = lambda model, x: jnp.sum(model(x))
    found = Collector().collect_physics_metrics(model, X, None, own)
    assert found == {"physics_residual": pytest.approx(8.0)}
    assert (
        Collector().collect_physics_metrics(model, X, None, PhysicsInformedLoss()) == {}
    )


def test_wrong_targets():
    with pytest.raises(ValueError, match=r"`y_true` must have the shape .*\(3, 2\)"):
        Collector().collect_physics_metrics(affine(), X, X[:, :1])


@pytest.mark.parametrize("kind", ["equinox", "nnx"])
def test_training_diagnostics(kind):
    collector = Collector()
    if kind == "equinox":
        model, moved = affine(1.0), affine(2.0)
        grads = Affine(jnp.full((2, 2), 3.0), jnp.zeros(2))
        param_norm = 2.0
    else:
        model = nnx.Linear(2, 2, param_dtype=float, rngs=nnx.Rngs(0))
        model.kernel[...], model.bias[...] = jnp.eye(2), jnp.ones(2)
        moved = nnx.clone(model)
        moved.bias[...] = 2 * jnp.ones(2)
        loss = lambda model: 3 * jnp.sum(model.kernel[...])
        grads, param_norm = nnx.grad(loss)(model), 2.0
    first = collector.collect_training_diagnostics(model, grads, 0.1)
    assert first == pytest.approx(
        {
            "grad_norm": 6.0,
            "param_norm": param_norm,
            "update_norm": 0.6,
            "learning_rate": 0.1,
        }
    )
    second = collector.collect_training_diagnostics(moved, grads, 0.1)
    assert second["param_change"] == pytest.approx(np.sqrt(2))


def test_timings():
    collector = Collector()
    collector.start_training()
    time.sleep(0.02)
    collector.start_epoch()
    time.sleep(0.01)
    found = collector.collect_training_diagnostics(affine(), affine(), 0.1)
    assert 0.01 <= found["epoch_time"] < found["total_time"] - 0.01


class Progress:
    """What a trainer shows of its state."""

    def __init__(self, epoch, best_loss, best_val_loss):
        self.epoch, self.best_loss = epoch, best_loss
        self.best_val_loss = best_val_loss


def test_convergence():
    collector = Collector()
    for i in range(12):
        # The loss falls by the factor exp(-0.3) an epoch, looked at every second one.
        state = Progress(2 * i, np.exp(-0.6 * i), np.inf)
        found = collector.collect_convergence_metrics(state)
        assert found["plateau"] == 0 and found["best_loss"] == np.exp(-0.6 * i)
        assert found["convergence_rate"] == pytest.approx(0.3 if i else 0.0)
    for i in range(1, 12):
        state = Progress(22 + 2 * i, np.exp(-0.6 * 11), np.inf)
        found = collector.collect_convergence_metrics(state)
        assert found["plateau"] == i
    assert found["convergence_rate"] == pytest.approx(0.0, abs=1e-12)
    collector.start_training()
    assert collector.collect_convergence_metrics(state)["plateau"] == 0


def test_convergence_of_a_state():
    recipe, model = regression()
    state = recipe.init(model, key=jr.key(0))
    assert (
        isinstance(state, door.TrainingState)
        and door.TrainingState is opx.TrainingState
    )
    collector = Collector()
    found = collector.collect_convergence_metrics(state)
    assert found["best_loss"] == found["best_val_loss"] == np.inf
    assert found["convergence_rate"] == 0
    later = replace(
        state.progress,
        epoch=jnp.asarray(1, jnp.int32),
        best_loss=jnp.asarray(0.5),
        best_val_loss=jnp.asarray(0.25),
    )
    collector.collect_convergence_metrics(replace(state, progress=later))
    last = replace(
        later, epoch=jnp.asarray(3, jnp.int32), best_val_loss=jnp.asarray(0.125)
    )
    found = collector.collect_convergence_metrics(replace(state, progress=last))
    # Validation counts where there is one: halved in two epochs.
    assert found["convergence_rate"] == pytest.approx(np.log(2) / 2)
    assert (found["best_loss"], found["best_val_loss"]) == (0.5, 0.125)


def test_history_and_summary():
    collector = Collector()
    assert collector.get_metrics_summary() == {}
    for i in range(20):
        collector.update_metrics_history({"square": jnp.asarray(float(i**2))})
    collector.update_metrics_history({"once": 3})
    assert collector.history["square"] == [float(i**2) for i in range(20)]
    summary = collector.get_metrics_summary(window_size=3)
    # 289, 324, 361: the line through them has the slope of the outer two.
    assert summary["square"] == pytest.approx(
        {"current": 361, "mean": 974 / 3, "min": 289, "max": 361, "trend": 36}
    )
    once = {"current": 3.0, "mean": 3.0, "min": 3.0, "max": 3.0, "trend": 0.0}
    assert summary["once"] == once
    ten = collector.get_metrics_summary()["square"]
    assert ten["min"] == 100 and ten["trend"] == pytest.approx(
        np.polyfit(range(10), np.arange(10, 20.0) ** 2, 1)[0]
    )
    with pytest.raises(ValueError, match="`window_size` must be a whole number"):
        collector.get_metrics_summary(window_size=0)


def test_safe_calls_are_calls():
    np.testing.assert_array_equal(safe_model_call(affine(1.0), X), X + 1)
    model = mlp(jr.key(0), 2)  # of one point
    np.testing.assert_array_equal(safe_model_call(model, X), jax.vmap(model)(X))
    module = StandardMLP([2, 4, 1], rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(safe_model_call(module, X), module(X))
    scaled = lambda x, *, by: by * x
    np.testing.assert_array_equal(safe_model_call(scaled, X, by=2.0), 2 * X)
    inside = jax.jit(lambda x: safe_model_call(module, x))(X)
    np.testing.assert_allclose(inside, module(X), rtol=1e-12)


def spring(r):
    """Half the squared distances of its atoms from the origin, of each molecule."""
    return 0.5 * jnp.sum(r**2, axis=(1, 2))


def test_safe_energies_and_forces():
    r = jr.normal(jr.key(0), (4, 2, 3))
    np.testing.assert_array_equal(safe_compute_energy(spring, r), spring(r))
    np.testing.assert_allclose(safe_compute_forces(spring, r), -r, rtol=1e-14)
    model = QuantumMLP([8, 1], 2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(safe_compute_energy(model, r), model(r))
    np.testing.assert_allclose(
        safe_compute_forces(model, r), model.compute_forces(r), rtol=1e-12
    )
    inside = jax.jit(lambda r: safe_compute_forces(spring, r))(r)
    np.testing.assert_allclose(inside, -r, rtol=1e-14)
    coincident = r.at[2, 0].set(r[2, 1])
    with pytest.raises(ValueError, match="not finite, first in row 2 of `positions`"):
        safe_compute_forces(model, coincident)


def raises(x):
    raise KeyError("no such layer")


R = jnp.ones((3, 2, 3))
BAD_CALLS = {
    "model": (lambda: safe_model_call(3, X), TypeError, "`model` must be callable, go"),
    "x": (
        lambda: safe_model_call(affine(), [1.0]),
        TypeError,
        "must be an array .* li",
    ),
    "nan": (
        lambda: safe_model_call(affine(), X.at[1].set(jnp.nan)),
        ValueError,
        "`x` holds NaN or an infinity, first in row 1",
    ),
    "width": (
        lambda: safe_model_call(affine(), jnp.ones((4, 3))),
        ModelCallError,
        r"type Affine failed on `x` of shape \(4, 3\) and dtype float64: TypeError",
    ),
    "inside": (lambda: safe_model_call(raises, X), ModelCallError, "KeyError: 'no suc"),
    "answer": (
        lambda: safe_model_call(affine(np.inf), X),
        ValueError,
        "`model` of type Affine is not finite, first in row 0 of `x`",
    ),
    "rows": (
        lambda: safe_model_call(lambda x: x[:1], X),
        ValueError,
        r"a row for each of the 3 of `x`, got .* of shape \(1, 2\)",
    ),
    "no array": (
        lambda: safe_model_call(lambda x: "yes", X),
        ValueError,
        "a row for each of the 3 of `x`, got str",
    ),
    "energy": (
        lambda: safe_compute_energy(lambda r: r, R),
        ValueError,
        r"one energy a molecule, of shape \(3, 1\), got \(3, 2, 3\)",
    ),
    "no energy": (
        lambda: safe_compute_energy(3, R),
        TypeError,
        "no method `compute_energy` and is not callable",
    ),
    "forces": (lambda: safe_compute_forces(raises, R), ModelCallError, "KeyError"),
    "forces of": (
        lambda: safe_compute_forces(lambda r: r, R),
        ModelCallError,
        "one energy a molecule",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message) as caught:
        call()
    # Nothing is swallowed.
    assert (caught.value.__cause__ is not None) == (error is ModelCallError)
