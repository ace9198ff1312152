"""The document that the classes were written for: each block runs as written, in its
own namespace, given what it leaves undefined; and keeps what it promises.

Where the document is not at hand, `tests/test_docs.py` runs the pages of this project.
"""

import pathlib
import re

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from opifex.core.training.config import TrainingConfig
from opifex.neural.base import StandardMLP
from opifex.training.basic_trainer import BasicTrainer


SEED = pathlib.Path(__file__).parents[2] / "shared" / "seed"
TEXTS = [path.read_text() for path in sorted(SEED.glob("*.txt"))]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", "\n".join(TEXTS), re.M | re.S)

pytestmark = pytest.mark.skipif(not BLOCKS, reason="the document is not at hand")


@pytest.fixture(autouse=True)
def as_a_reader():
    """What a reader has: neither strict promotion nor the tests' settings."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(first_words, last_words="", **given):
    """Runs the block that imports and ends like this; what it leaves behind."""
    found = [b for b in BLOCKS if first_words in b and b.rstrip().endswith(last_words)]
    assert len(found) == 1, f"{len(found)} blocks have {first_words!r}"
    namespace = {"jax": jax, "jnp": jnp, "nnx": nnx} | given
    exec(compile(found[0], first_words, "exec"), namespace)
    return namespace


def rows(num, features, seed=0):
    x = jr.uniform(jr.key(seed), (num, features), minval=-1, maxval=1)
    return x, jnp.sin(2 * jnp.sum(x, axis=1, keepdims=True))


def network(*sizes):
    return StandardMLP(sizes, activation="tanh", rngs=nnx.Rngs(0))


def config(**options):
    return TrainingConfig(
        **{"num_epochs": 30, "validation_frequency": 5, "progress": False} | options
    )


def check_trained(out, model, x, y, epochs):
    """The model is the trained one, the losses fell, the history is of that length."""
    history, state = out["history"], out["trainer"].training_state
    assert out["trained_model"] is model
    for name in ("train_loss", "val_loss", "learning_rate", "grad_norm"):
        assert history[name].shape == (epochs,), name
    assert history["train_loss"][-1] < 0.7 * history["train_loss"][0]
    model.eval()
    loss = float(jnp.mean((model(x) - y) ** 2))
    model.train()
    np.testing.assert_allclose(history["val_loss"][-1], loss, 1e-5)
    assert state.epoch == history["epochs"] == epochs
    assert state.best_val_loss == pytest.approx(np.nanmin(history["val_loss"]))
    assert isinstance(state.epoch, int) and isinstance(state.best_val_loss, float)
    return history


def test_there_are_sixteen():
    assert len(BLOCKS) == 16


def test_trainer():
    x, y = rows(1024, 10)
    y = 0.5 * y + 1.0
    val = (x[:64], y[:64])
    out = run("from opifex.core.training.trainer", train_data=(x, y), val_data=val)
    history = out["history"]
    for name in ("conservation/energy", "conservation/momentum", "scale/molecular",
                 "scale/atomic", "drift/energy"):  # fmt: skip
        assert history[name].shape == (100,), name
    assert history["conservation/energy"][-1] < 0.5 * history["conservation/energy"][0]
    assert history["train_loss"][-1] < 0.5 * history["train_loss"][0]
    assert out["trained_model"] is out["model"]
    loss = float(jnp.mean((out["model"](val[0]) - val[1]) ** 2))
    assert loss < float(jnp.mean(val[1] ** 2))
    assert out["trainer"].training_state.epoch == 100


def test_basic_trainer():
    model, (x, y) = network(2, 16, 1), rows(128, 2)
    given = {"model": model, "config": config(), "train_data": (x, y)}
    words = (
        "import BasicTrainer\nfrom opifex.core.training.config import TrainingConfig"
    )
    out = run(words + "\n\ntrainer", val_data=(x, y), **given)
    check_trained(out, model, x, y, 30)


def test_modular_trainer_with_components():
    model, (x, y) = network(2, 16, 1), rows(128, 2)
    given = {"model": model, "config": config(), "rngs": nnx.Rngs(0)}
    made = run("ErrorRecoveryManager()", **given)["trainer"]
    assert set(made.components) == {"error_recovery", "optimizer_factory"}
    out = run("# Configure components", train_data=(x, y), val_data=(x, y), **given)
    history = out["history"]
    # Cosine, over the default number of steps of the run: down to nothing.
    assert history["learning_rate"][-1] < 0.01 * history["learning_rate"][0]
    collected = out["trainer"].metrics_collector.get_metrics_summary()
    assert collected["train_loss"]["current"] == pytest.approx(
        history["train_loss"][-1]
    )


def test_recovery_really_recovers():
    manager = run("error_manager = ErrorRecoveryManager(")["error_manager"]
    grads = {"w": jnp.array([3.0, 4.0])}
    clipped = manager.apply_gradient_clipping(grads)
    np.testing.assert_allclose(clipped["w"], [0.6, 0.8])
    good = {"w": jnp.array([0.3, 0.4])}
    assert manager.check_training_stability(1.0, good) == (True, None)
    assert manager.check_training_stability(101.0, good) == (False, "loss_explosion")
    assert manager.recovery.max_attempts == 5


def test_optimizer_factory():
    factory = run("optimizer_factory = FlexibleOptimizerFactory(\n")[
        "optimizer_factory"
    ]
    schedule = factory.create_schedule()
    rates = [float(schedule(step)) for step in (0, 500, 1000)]
    np.testing.assert_allclose(rates, [1e-3, 5e-4, 0], atol=1e-9)
    assert factory.create_optimizer().init({"w": jnp.ones(2)})


def test_metrics_collector():
    model, (x, y) = network(2, 16, 1), rows(32, 2)
    out = run("collector = AdvancedMetricsCollector()", model=model, x=x, y_true=y)
    error = np.asarray(model(x) - y)
    assert out["metrics"]["mse"] == pytest.approx(np.mean(error**2))
    assert out["metrics"]["max_error"] == pytest.approx(np.abs(error).max())


def test_component():
    component = run("class CustomComponent")["CustomComponent"]()
    component.initialize(anything=1)
    component.update(epoch=1, state=None, metrics={})
    component.setup(None, None)
    component.cleanup()


def test_training_config():
    made = run("early_stopping=True")["config"]
    assert (made.num_epochs, made.batch_size, made.patience) == (1000, 64, 50)
    assert made.early_stopping and made.checkpoint_frequency == 500


def test_training_state(capsys):
    model, (x, y) = network(2, 16, 1), rows(64, 2)
    trainer = BasicTrainer(model, config(num_epochs=4))
    _, history = trainer.train((x, y), (x, y))
    run("import TrainingState", trainer=trainer)
    printed = capsys.readouterr().out
    assert "Current epoch: 4\n" in printed
    best = np.nanmin(history["val_loss"])
    assert float(printed.split("Best validation loss: ")[1]) == pytest.approx(best)


def test_adaptive_physics_loss():
    model, (x, y) = network(2, 16, 1), rows(64, 2)
    trainer = BasicTrainer(model, config())
    run("import PhysicsInformedLoss, PhysicsLossConfig", trainer=trainer)
    _, history = trainer.train((x, y), boundary_data=(x[:8], y[:8]))
    assert history["train_loss"][-1] < history["train_loss"][0]
    # The weights are balanced, so they are not what they were.
    assert np.ptp(history["weight/data"]) > 0


def test_basic_workflow():
    x, y = rows(256, 1)
    out = run("# Create model\nmodel = StandardMLP", train_data=(x, y), val_data=(x, y))
    history = check_trained(out, out["model"], x, y, 1000)
    assert history["train_loss"][-1] < 0.02 * history["train_loss"][0]


def test_heat_equation():
    """Zero at both ends and sin(pi x) at first: exp(-0.1 pi^2 t) sin(pi x)."""
    points = jr.uniform(jr.key(0), (512, 2))
    side = jnp.linspace(0, 1, 32)
    zero, one = jnp.zeros(32), jnp.ones(32)
    walls = [jnp.stack(c, 1) for c in ((zero, side), (one, side), (side, zero))]
    values = jnp.concatenate([zero, zero, jnp.sin(jnp.pi * side)])[:, None]
    out = run(
        "def pde_residual(model_fn, x, t)",
        model=network(2, 16, 16, 1),
        config=config(num_epochs=200, batch_size=512, optimizer="ssbroyden"),
        domain_points=points,
        boundary_points=jnp.concatenate(walls),
        boundary_values=values,
    )
    x, t = points.T
    exact = jnp.exp(-0.1 * jnp.pi**2 * t) * jnp.sin(jnp.pi * x)
    error = out["trained_model"](points)[:, 0] - exact
    assert jnp.linalg.norm(error) < 0.02 * jnp.linalg.norm(exact)
    assert (
        out["history"]["interior"].shape == out["history"]["boundary"].shape == (200,)
    )


def test_networks():
    out = run("# Quantum networks", rngs=nnx.Rngs(0))
    assert out["standard_model"](jnp.ones((5, 3))).shape == (5, 1)
    positions = jr.normal(jr.key(0), (4, 3, 3))
    energy = out["quantum_model"](positions)
    assert energy.shape == (4, 1)
    # Identical atoms, in another order.
    swapped = out["quantum_model"](positions[:, jnp.array([2, 0, 1])])
    np.testing.assert_allclose(swapped, energy, 1e-10)


def test_learned_optimizer():
    pytest.importorskip("opifex.optimization")
    model, (x, y) = network(2, 16, 1), rows(64, 2)
    out = run("import MetaOptimizer", model=model, config=config(),
              BasicTrainer=BasicTrainer)  # fmt: skip
    _, history = out["trainer"].train((x, y))
    assert history["train_loss"][-1] < history["train_loss"][0]


def test_geometry():
    out = run("import ComplexDomain")
    condition = out["boundary_conditions"][0]
    assert condition.boundary == "left" and condition.value == 0.0
    assert set(out["domain"].boundaries) == {"left", "right", "top", "bottom"}
