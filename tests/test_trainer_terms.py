"""What the configuration adds to the loss, and to the history."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import opifex as opx
from opifex._weighting.base import Observed
from opifex.core.conditions import (
    DirichletBC,
    InitialCondition,
    NeumannBC,
    PeriodicBC,
    RobinBC,
)
from opifex.core.training.config import (
    BoundaryConfig,
    ConservationConfig,
    LossConfig,
    MetricsTrackingConfig,
    MultiScaleConfig,
    QuantumTrainingConfig,
)
from opifex.core.training.trainer import Trainer
from opifex.neural.quantum import QuantumMLP
from opifex.nnx.terms.boundary import soft_conditions
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
    options = {"num_epochs": 7, "validation_frequency": 3}
    trainer = Trainer(mlp(), config(metrics_tracking_config=tracked, **options))
    model, history = trainer.train((X, Y), (X[:7], Y[:7]))
    error = np.asarray(jax.vmap(model)(X[:7]) - Y[:7])
    expected = {
        "mse": np.mean(error**2), "mae": np.abs(error).mean(),
        "max_error": np.abs(error).max(),
        "relative_l2": np.linalg.norm(error) / np.linalg.norm(Y[:7]),
    }  # fmt: skip
    for name, value in expected.items():
        known = np.isfinite(history[name])
        assert (np.flatnonzero(known) + 1).tolist() == [2, 4, 6, 7]
        np.testing.assert_allclose(history[name][-1], value, 1e-10)
    validated = np.flatnonzero(np.isfinite(history["val_loss"])) + 1
    assert validated.tolist() == [3, 6, 7]


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


class Plane(eqx.Module):
    """u = x / 2 + 2 t."""

    weight: jax.Array = eqx.field(default_factory=lambda: jnp.array([0.5, 2.0]))

    def __call__(self, points):
        return points @ self.weight[:, None]


STRIP = opx.Interval(0.0, 2.0) * opx.Interval(0.0, 1.0)
# What each leaves over is the same at all points.
CONDITIONS = {
    "boundary/left/u": (DirichletBC("left", lambda x, t: 2 * t + 3), 9.0),
    "boundary/right/u_n": (NeumannBC("right", 0.2, weight=10.0), 0.9),
    "boundary/left/u+u_n": (RobinBC("left", 2.0, 1.0, lambda x, t: 4 * t), 0.25),
    "boundary/left/periodic u": (PeriodicBC("left", "right"), 1.0),
    "initial/u": (InitialCondition(lambda x, t: x / 2 + 1), 1.0),
    "initial/u_t": (InitialCondition(0.5, order=1), 2.25),
}


@pytest.mark.parametrize("physics", [False, True])
def test_conditions_on_a_domain(physics):
    given = [condition for condition, _ in CONDITIONS.values()]
    points = STRIP.sample(8, jr.key(0))
    boundary = BoundaryConfig(weight=2.0, domain=STRIP, conditions=given, num_points=7)
    options = config(boundary_config=boundary, optimizer=STILL, num_epochs=1,
                     loss_config=LossConfig(initial_weight=3.0))  # fmt: skip
    trainer = Trainer(Plane(), options)
    if physics:
        trainer.set_physics_loss(
            PhysicsInformedLoss(lambda u, x, t: u(jnp.stack([x, t])))
        )
        _, history = trainer.train((points, None))
    else:
        _, history = trainer.train((points, Plane()(points)))
    for name, (_, left) in CONDITIONS.items():
        weight = 3 if name.startswith("initial") else 2
        np.testing.assert_allclose(history[name], [weight * left], 1e-12, err_msg=name)


def test_conditions_and_laws_of_the_physics_loss():
    """The mass is 1 + 4 t, asked for at four times, the last of them 1."""
    given = [condition for condition, _ in CONDITIONS.values()]
    weights = PhysicsLossConfig(boundary_weight=2.0, initial_weight=3.0)
    loss = PhysicsInformedLoss(
        config=weights, domain=STRIP, conditions=given, num_points=4,
        conserved=[opx.mass("x t", weight=0.5)],
    )  # fmt: skip
    points = STRIP.sample(4, jr.key(0))
    found = jax.jit(lambda model: loss.terms(model, points))(Plane())
    assert set(found) == {*CONDITIONS, "times/mass"}
    for name, (_, left) in CONDITIONS.items():
        weight = 3 if name.startswith("initial") else 2
        np.testing.assert_allclose(found[name], weight * left, 1e-12, err_msg=name)
    drifts = 4 * np.array([0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found["times/mass"], 0.5 * np.mean(drifts**2), 1e-12)


def test_values_that_hold_exactly():
    """3 on the left of (0, 2), whatever the network is; a slope on the right is a term
    of the loss."""
    domain = opx.Interval(0.0, 2.0)
    given = [DirichletBC("left", 3.0), NeumannBC("right", 0.5)]
    boundary = BoundaryConfig(enforce=True, domain=domain, conditions=given)
    module = Net(nnx.Rngs(0))
    trainer = Trainer(
        module, config(boundary_config=boundary, num_epochs=40, learning_rate=1e-2)
    )
    x = jnp.linspace(0, 2, 16, dtype=jnp.float32)[:, None]
    y = 3 - x / 2 + jnp.sin(2 * x)
    trained, history = trainer.train((x, y), (x, y))
    assert trained is module and history["boundary/right/u_n"].shape == (40,)
    assert history["train_loss"][-1] < 0.4 * history["train_loss"][0]

    @jax.jit
    def formula(raw):
        """With the distance by one's own hand."""
        near = jax.vmap(lambda p: domain.distance(p, ("left",)))(x.astype(float))
        return 3 + near[:, None] * raw.astype(float)

    seen = eqx.filter_jit(trainer.model_fn)(x)
    assert seen[0, 0] == 3
    np.testing.assert_allclose(seen, formula(module(x)), 1e-5)
    of_state = eqx.filter_jit(trainer.training_state.model)(x)
    np.testing.assert_array_equal(of_state, seen)
    # All numbers are those of the function, not of the network.
    error = float(np.mean((np.asarray(seen) - y) ** 2))
    assert history["val_loss"][-1] == pytest.approx(error, 1e-5)
    slope = jax.grad(lambda p: trainer.model_fn(p[None, None])[0, 0])(x[-1, 0])
    both = error + (float(slope) - 0.5) ** 2
    assert trainer.validation_step(x, y) == pytest.approx(both, 1e-4)
    with pytest.raises(ValueError, match="of dimension 1, but the inputs"):
        trainer.train((jnp.concatenate([x, x], 1), y))


def test_exact_values_with_an_equation():
    """u_t = -u_x from sin(pi x), and zero on the left, exactly."""
    domain = opx.Interval(0.0, 1.0) * opx.Interval(0.0, 1.0)
    start = InitialCondition(lambda x, t: jnp.sin(jnp.pi * x))
    given = [DirichletBC("left", 0.0), start]
    boundary = BoundaryConfig(enforce=True, domain=domain, conditions=given)
    net = eqx.nn.MLP(2, 1, 8, 1, jnp.tanh, key=jr.key(0))
    trainer = Trainer(net, config(boundary_config=boundary, num_epochs=30,
                                  learning_rate=1e-2, batch_size=32))  # fmt: skip
    transport = opx.residual("x t")(lambda u, x, t: u.t + u.x)
    trainer.set_physics_loss(PhysicsInformedLoss(transport))
    points = domain.sample(32, jr.key(0))
    trained, history = trainer.train((points, None))
    assert isinstance(trained, eqx.nn.MLP)
    assert not any(name.startswith(("boundary", "initial")) for name in history)
    assert history["interior"][-1] < 0.7 * history["interior"][0]
    side, zero = np.linspace(0, 1, 5), np.zeros(5)
    ends = np.stack([[side, zero], [zero, side]]).transpose(0, 2, 1).reshape(10, 2)
    found = eqx.filter_jit(trainer.model_fn)(jnp.asarray(ends))[:, 0]
    expected = np.concatenate([np.sin(np.pi * side), zero])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    with pytest.raises(ValueError, match="`enforce` = True has nothing to enforce"):
        BoundaryConfig(enforce=True, domain=domain, conditions=[NeumannBC("right")])


def test_laws_as_constraints():
    """Fields w times an input of ones, fitted to twos: the squares of the misfit and of
    the change of mass are least at w = 3/2; the constraint makes it one."""
    x, found = jnp.ones((1, 4)), {}
    for enforcement, more in {
        "penalty": {},
        "augmented_lagrangian": {"multiplier_frequency": 5, "weight_growth": 1.0},
    }.items():
        law = ConservationConfig(
            laws=["mass"], reference="input", enforcement=enforcement, **more
        )
        trainer = Trainer(line(), config(conservation_config=law, num_epochs=120,
                                         optimizer=optax.sgd(0.2)))  # fmt: skip
        model, history = trainer.train((x, 2 * x), (x, 2 * x))
        found[enforcement] = float(model.weight)
    np.testing.assert_allclose(list(found.values()), [1.5, 1.0], atol=1e-5)
    assert abs(history["drift/mass"][-1]) < 1e-5
    # At the minimum of (w - 2)^2 + (w - 1)^2 + m (w - 1) the multiplier is two.
    np.testing.assert_allclose(history["weight/excess/mass"][-1], 2.0, 1e-4)
    # What has a sign is no part of what the run is judged by.
    np.testing.assert_allclose(history["val_loss"][-1], 1.0, 1e-4)
    for refused, message in (
        (config(conservation_config=law, early_stopping=True), "needs `val_data`"),
        (config(conservation_config=law), "contradicts the adaptive weighting"),
    ):
        trainer = Trainer(line(), refused)
        if "adaptive" in message:
            weights = PhysicsLossConfig(adaptive_weighting=True)
            trainer.set_physics_loss(PhysicsInformedLoss(config=weights))
        with pytest.raises(ValueError, match=message):
            trainer.train((x, 2 * x))
    with pytest.raises(ValueError, match="inputs that are states"):
        Trainer(Plane(), config(conservation_config=law)).train((X @ X[:2].T, Y))


def test_fields_have_names_and_conditions_their_points():
    boundary = BoundaryConfig(
        domain=opx.Interval(0.0, 2.0), fields=("u", "v"), num_points=5,
        conditions=[DirichletBC("left", 1.0, field="v"), NeumannBC("right", field="u")],
    )  # fmt: skip
    made = soft_conditions(boundary, jr.key(0))
    found = made.residuals(lambda x: jnp.array([3.0, 4.0]) + x)
    expected = {"boundary/left/v": 3.0, "boundary/right/u_n": 1.0}
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], np.full(5, value))
    with pytest.raises(ValueError, match="Unknown name 'w' in `field`"):
        bad = [DirichletBC("left", field="w")]
        boundary = BoundaryConfig(domain=opx.Interval(0.0, 2.0), conditions=bad)
        Trainer(line(), config(boundary_config=boundary))


def test_multipliers_by_hand():
    """The rules in plain numbers, for a constraint of two components."""
    weighting = opx.Multipliers((("square", "mean"),), mu=2.0, beta=3.0, max_mu=10.0,
                                every=1)  # fmt: skip
    terms = dict(zip(("data", "square", "mean/0", "mean/1"), jnp.ones(4), strict=True))
    state, mu, one, other = weighting.init(terms), 2.0, 0.0, 0.0
    for step in range(4):
        weights = jax.jit(weighting.weights)(state, terms)
        expected = {"data": 1.0, "square": mu, "mean/0": one, "mean/1": other}
        assert {name: float(w) for name, w in weights.items()} == expected
        terms |= {"mean/0": jnp.asarray(0.5 - step), "mean/1": jnp.asarray(0.25)}
        seen = Observed(jnp.asarray(step), terms, {}, None, jr.key(0), dict, dict)
        state = weighting.update(state, seen)
        if step > 0:
            one, other = one + 2 * mu * (0.5 - step), other + 2 * mu * 0.25
            mu = min(3 * mu, 10.0)
    with pytest.raises(ValueError, match="Unknown name 'means' in `constraints`"):
        opx.Multipliers((("square", "means"),)).init(terms)
    for bad in ({"mu": 0.0}, {"beta": 0.5}, {"max_mu": 0.5}, {"every": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be"):
            opx.Multipliers((("square", "mean"),), **bad)


class Spring(eqx.Module):
    """E = k |r|^2, so F = -2 k r."""

    k: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(0.5))

    def __call__(self, positions):
        return self.k * jnp.sum(positions**2, axis=(1, 2))[:, None]


R = jr.normal(jr.key(3), (5, 3, 3)) / 8


def springs(**quantum):
    quantum = QuantumTrainingConfig(**{"force_weight": 3.0} | quantum)
    tracked = MetricsTrackingConfig(metrics=["mse"])
    return Trainer(
        Spring(), config(quantum_config=quantum, num_epochs=1, optimizer=STILL,
                         metrics_tracking_config=tracked)
    )  # fmt: skip


def test_energies_and_forces():
    energies, forces = jnp.sum(R**2, (1, 2)), jnp.ones_like(R)
    trainer = springs()
    data = (R, (energies, forces))
    _, history = trainer.train(data, data)
    short, away = energies / 2, -R - 1
    expected = {
        "data": jnp.mean(short**2), "forces": 3 * jnp.mean(away**2),
        "force_error": jnp.mean(jnp.abs(away)), "mse": jnp.mean(short**2),
        "energy_error_kcal_mol": 627.5094740631 * jnp.mean(short),
        "val_loss": jnp.mean(short**2) + 3 * jnp.mean(away**2),
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], [value], 1e-12, err_msg=name)
    assert trainer.validation_step(*data) == pytest.approx(expected["val_loss"])
    with pytest.warns(UserWarning, match=r"`train_data\[1\]` differ by .* 27.2114 eV"):
        trainer.train((R, (27.2 * energies, forces)), data)


def test_energies_and_forces_of_a_module():
    model = QuantumMLP([4, 1], 2, num_radial=2, rngs=nnx.Rngs(0))
    quantum = QuantumTrainingConfig(force_weight=3.0)
    trainer = Trainer(model, config(quantum_config=quantum, num_epochs=20,
                                    learning_rate=1e-2))  # fmt: skip
    molecules = 4 * R[:, :2].at[:, :, 0].add(jnp.arange(2.0)[None])
    energies, forces = jnp.sum(R**2, (1, 2)), R[:, :2]
    data = (molecules, (energies, forces))

    @jax.jit
    def loss():
        misfit = model(molecules)[:, 0] - energies
        away = model.compute_forces(molecules) - forces
        return jnp.mean(misfit**2) + 3 * jnp.mean(away**2)

    before = float(loss())
    assert trainer.validation_step(*data) == pytest.approx(before, 1e-12)
    trained, history = trainer.train(data)
    assert history["train_loss"][0] == pytest.approx(before, 1e-12)
    assert trained is model and trainer.validation_step(*data) < 0.9 * before


BAD_FORCES = {
    "no pair": (lambda e, f: (R, e), TypeError, "pair `\\(energies, forces\\)`"),
    "shape": (lambda e, f: (R, (e, f[:, :2])), ValueError, "of the shape of the pos"),
    "energies": (lambda e, f: (R, (f, f)), ValueError, "one energy a row"),
    "nuclei": (
        lambda e, f: (R.at[2, 1].set(R[2, 0]), (e, f)), ValueError,
        r"`train_data\[0\]` has two nuclei in one place, 0 and 1 of row 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FORCES)
def test_bad_energies_and_forces(case):
    give, error, message = BAD_FORCES[case]
    with pytest.raises(error, match=message.replace("\\\\", "\\")):
        springs().train(give(jnp.sum(R**2, (1, 2)), R))
    if case == "no pair":
        # Nor does a physics loss, or a law about fields, go with forces.
        trainer = springs()
        trainer.set_physics_loss(PhysicsInformedLoss(lambda u, *x: u(jnp.stack(x))))
        with pytest.raises(ValueError, match="knows no forces"):
            trainer.train((R, (jnp.sum(R**2, (1, 2)), R)))


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
