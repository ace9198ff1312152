import csv
import json
import logging
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import opifex as opx
from opifex.core.training.config import (
    ConservationConfig,
    DFTConfig,
    LoggingConfig,
    LossConfig,
    MetricsTrackingConfig,
)
from opifex.core.training.trainer import Trainer
from opifex.nnx.bridge import NNXModel
from opifex.training import PhysicsInformedLoss, PhysicsLossConfig
from opifex.training.basic_trainer import BasicTrainer, ModularTrainer
from opifex.training.components import FlexibleOptimizerFactory, TrainingComponentBase

from .trainer_models import (
    arrays,
    assert_same,
    config,
    line,
    mlp,
    Net,
    X,
    X32,
    Y,
    Y32,
)


# What is trained.


@pytest.fixture(scope="module")
def by_the_core():
    """Ragged batches of 8 out of 20 rows, in shuffled order."""
    sampler = opx.Minibatch(X, Y, 8)
    recipe = opx.Recipe(opx.Supervised(), optax.adam(1e-3), sampler, steps=3)
    return opx.fit(recipe, recipe.init(mlp(), key=jr.key(7)), num_chunks=6)


@pytest.mark.parametrize("kind", [BasicTrainer, ModularTrainer])
def test_adapter_equals_core(kind, by_the_core):
    trainer = kind(mlp(), config(seed=7))
    model, history = trainer.train((X, Y))
    assert_same(model, by_the_core.model, 1e-12)
    assert trainer.model is model and history["result"] == ""
    best = by_the_core.progress.best_loss
    np.testing.assert_allclose(trainer.training_state.best_loss, best, 1e-12)
    assert history["train_loss"].shape == (6,) and history["epochs"] == 6


def test_adapter_equals_core_for_nnx():
    module = Net(nnx.Rngs(0))
    problem = opx.Supervised(apply=lambda model, x, key: model.update(x))
    recipe = opx.Recipe(problem, optax.adam(1e-3), opx.Minibatch(X32, Y32, 8), steps=3)
    state = recipe.init(NNXModel.of(module), key=jr.key(0))
    expected = opx.fit(recipe, state, num_chunks=6)
    model, _ = Trainer(module, config()).train((X32, Y32))
    assert model is module
    assert_same(NNXModel.of(module), expected.model, 1e-6)


def test_mean_over_an_epoch_by_hand():
    """Steps too short to move anything, so every row is seen by the same model."""
    optimizer = optax.sgd(1e-30)
    _, history = Trainer(line(), config(optimizer=optimizer)).train((X, Y))
    expected = jnp.mean((0.5 * X - Y) ** 2)
    np.testing.assert_allclose(history["train_loss"], np.full(6, expected), 1e-12)
    gradient = [jnp.abs(jnp.mean(2 * X * (0.5 * X - Y)))]
    whole, history = Trainer(line(), config(optimizer=optimizer, batch_size=99)).train(
        (X, Y)
    )
    np.testing.assert_allclose(history["grad_norm"], np.tile(gradient, 6), 1e-12)
    assert whole.weight == 0.5


def test_second_train_compiles_nothing():
    trainer = Trainer(Net(nnx.Rngs(0)), config(loss_config=LossConfig("huber")))
    mine = lambda names: [n for n in names if "_traced" in n or "<lambda>" in n]
    with jax.log_compiles(), _compiled() as names:
        trainer.train((X32, Y32), (X32, Y32))
    assert mine(names)
    with jax.log_compiles(), _compiled() as names:
        trainer.train((X32 + 1, Y32), (X32, Y32))
    assert not mine(names)


class _compiled(logging.Handler):
    """The messages of JAX about what it compiled while this is entered."""

    def __enter__(self):
        self.names: list[str] = []
        self._log = logging.getLogger("jax")
        self._before = self._log.propagate
        self._log.addHandler(self)
        self._log.propagate = False
        return self.names

    def __exit__(self, *_):
        self._log.removeHandler(self)
        self._log.propagate = self._before

    def emit(self, record):
        if "Compiling" in record.getMessage():
            self.names.append(record.getMessage())


def test_seed_and_rngs():
    train = lambda **options: Trainer(
        mlp(), config(num_epochs=1, seed=options.pop("seed", 0)), **options
    ).train((X, Y))[0]
    one = train(seed=1)
    assert_same(one, train(rngs=jr.key(1)))
    for other in (train(seed=2), train(rngs=nnx.Rngs(dropout=3))):
        assert any(
            (a != b).any() for a, b in zip(arrays(one), arrays(other), strict=True)
        )


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (LossConfig("mse"), lambda e: e**2),
        (LossConfig("mae"), jnp.abs),
        (
            LossConfig("huber", huber_delta=0.1),
            lambda e: optax.huber_loss(e, delta=0.1),
        ),
        (LossConfig("relative_l2"), lambda e: jnp.abs(e / Y)),
        (LossConfig(data_weight=3.0), lambda e: 3 * e**2),
    ],
    ids=["mse", "mae", "huber", "relative_l2", "weight"],
)
def test_loss_types(loss, expected):
    trainer = Trainer(line(), config(loss_config=loss))
    found = trainer.validation_step(X[X[:, 0] != 0], Y[X[:, 0] != 0])
    np.testing.assert_allclose(found, jnp.mean(expected(0.5 * X - Y)), 1e-12)


def test_learning_rates_of_the_history():
    factory = FlexibleOptimizerFactory({"schedule_type": "linear"})
    trainer = ModularTrainer(
        line(), config(learning_rate=0.1), components={"optimizer_factory": factory}
    )
    _, history = trainer.train((X, Y))
    # 18 steps; the last of each epoch is number 2, 5, ...
    expected = 0.1 * (1 - np.arange(2, 18, 3) / 18)
    np.testing.assert_allclose(history["learning_rate"], expected, 1e-6)
    _, history = BasicTrainer(line(), config(), meta_optimizer=optax.sgd(0.1)).train(
        (X, Y)
    )
    assert np.isnan(history["learning_rate"]).all()


class Tokens(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(5, 1, rngs=rngs)

    def __call__(self, x):
        return self.table(x)


def test_shapes_and_dtypes_of_the_data():
    trainer = Trainer(line(), config())
    flat, whole = trainer.validation_step(X, Y[:, 0]), trainer.validation_step(X, Y)
    assert flat == whole
    # Whole numbers are for the model to judge.
    trainer = Trainer(Tokens(nnx.Rngs(0)), config(num_epochs=2))
    _, history = trainer.train((jnp.arange(20) % 5, Y32))
    assert history["train_loss"][-1] < history["train_loss"][0]


# When it ends.


def test_validation_and_best_model():
    """Steps in the wrong direction: the first model is the best, and is handed back."""
    worse = optax.sgd(-1e-2)
    trainer = Trainer(
        line(),
        config(
            optimizer=worse, num_epochs=50, validation_frequency=2,
            early_stopping=True, patience=3,
        ),
    )  # fmt: skip
    model, history = trainer.train((X, Y), (X, Y))
    validated = history["val_loss"][1::2]
    assert np.isnan(history["val_loss"][::2]).all() and np.isfinite(validated).all()
    # The first validation counts as the best; three more, none better.
    assert history["epochs"] == 8 and (np.diff(validated) > 0).all()
    assert "stopped improving" in history["result"]
    state = trainer.training_state
    assert state.best_val_loss == pytest.approx(validated[0]) and state.epoch == 2
    np.testing.assert_allclose(
        jnp.mean((model.weight * X - Y) ** 2), validated[0], 1e-12
    )


def test_early_stop_by_the_training_loss():
    options = {"early_stopping": True, "patience": 3, "validation_frequency": 2}
    worse = optax.sgd(-1e-2)
    trainer = Trainer(line(), config(optimizer=worse, num_epochs=50, **options))
    model, history = trainer.train((X, Y))
    assert history["epochs"] == 8 and trainer.training_state.epoch == 2
    assert (np.diff(history["train_loss"]) > 0).all()
    loss = float(jnp.mean((model.weight * X - Y) ** 2))
    assert history["train_loss"][1] < loss < history["train_loss"][3]


BACKWARDS = optax.sgd(lambda step: jnp.where(step < 9, 1e-2, -1.0))


class _Interrupted(BaseException):
    """Like the second Ctrl-C: nothing that is caught in passing."""


def _raise(error):
    raise error


@pytest.fixture
def heeds_interrupts():
    """Also where the tests are run in the background, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("how", ["error", "sigint", "hard"])
def test_best_model_survives(how):
    """What befalls the run at epoch 4, when the best parameters are those after 3: the
    4th epoch goes the wrong way."""
    module = Net(nnx.Rngs(0))
    trainer = Trainer(
        module, config(optimizer=BACKWARDS, validation_frequency=1, num_epochs=9)
    )
    seen = {}

    def hook(state, metrics):
        # The module has the parameters of now.
        loss = jnp.mean((state.model(X32) - Y32) ** 2)
        np.testing.assert_allclose(loss, metrics["val_loss"], 1e-5)
        seen[state.epoch] = metrics["val_loss"], arrays(state.core.model)
        if state.epoch == 4:
            if how == "sigint":
                os.kill(os.getpid(), signal.SIGINT)
            elif how == "error":
                _raise(KeyError("mine"))
            else:
                _raise(_Interrupted())

    trainer.register_hook("epoch_end", hook)
    errors = {"error": KeyError, "hard": _Interrupted}
    if how == "sigint":
        _, history = trainer.train((X32, Y32), (X32, Y32))
        assert "interrupted" in history["result"]
    else:
        with pytest.raises(errors[how]):
            trainer.train((X32, Y32), (X32, Y32))
    assert list(seen) == [1, 2, 3, 4] and min(seen, key=lambda i: seen[i][0]) == 3
    for found, best in zip(arrays(module), seen[3][1], strict=True):
        np.testing.assert_array_equal(found, best)
    assert trainer.history["epochs"] == 4


def test_nan_in_the_middle():
    """Nothing is finite from some way to the minimum on."""
    trainer = Trainer(line(), config(optimizer=optax.sgd(0.5), num_epochs=60))
    wall = lambda f, x, y: jnp.where(jnp.mean(f(x) / x) > 1.0, jnp.nan, 0.0)
    trainer.register_custom_loss(
        "wall", lambda f, x, y: jnp.full(len(x), wall(f, x, y))
    )
    model, history = trainer.train((X, 2 * X))
    assert 0.6 < float(model.weight) <= 1.0
    assert history["recovery"]["attempts"] > 0
    assert history["recovery"]["first"]["term"] == "wall"


def test_nothing_but_nan():
    module = Net(nnx.Rngs(0))
    before = arrays(module)
    trainer = Trainer(module, config(num_epochs=99))
    trainer.register_custom_loss("bad", lambda f, x, y: jnp.nan * f(x)[:, 0])
    with pytest.raises(opx.TrainingError, match="did not recover"):
        trainer.train((X32, Y32))
    for one, other in zip(arrays(module), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert trainer.history["recovery"]["attempts"] > 0
    assert "did not recover" in trainer.history["result"]


# Who is told.


class Component(TrainingComponentBase):
    def __init__(self):
        self.calls = []

    def initialize(self, **kwargs):
        self.calls.append(("initialize", sorted(kwargs)))

    def setup(self, model, state):
        self.calls.append(("setup", type(model).__name__, state.epoch))

    def update(self, **kwargs):
        state, metrics = kwargs["state"], kwargs["metrics"]
        assert np.isfinite(metrics["train_loss"])
        self.calls.append(("update", kwargs["epoch"], state.epoch))
        # It cannot disturb what runs.
        metrics.clear()

    def cleanup(self):
        self.calls.append(("cleanup",))


def test_components_hooks_and_callback():
    mine, heard, hooked = Component(), [], []
    trainer = ModularTrainer(
        Net(nnx.Rngs(0)),
        config(num_epochs=3, progress_callback=lambda e, m: heard.append((e, dict(m)))),
        components={"mine": mine},
    )
    for point in ("train_start", "epoch_end", "train_end"):
        trainer.register_hook(
            point, lambda state, metrics, p=point: hooked.append((p, state.epoch))
        )
    _, history = trainer.train((X32, Y32))
    assert mine.calls[1:] == [
        ("setup", "Net", 0), ("update", 1, 1), ("update", 2, 2), ("update", 3, 3),
        ("cleanup",),
    ]  # fmt: skip
    assert mine.calls[0][0] == "initialize"
    assert [e for e, _ in heard] == [1, 2, 3]
    assert hooked == [
        ("train_start", 0), *(("epoch_end", i) for i in (1, 2, 3)), ("train_end", 3)
    ]  # fmt: skip
    collected = trainer.metrics_collector.history
    np.testing.assert_allclose(collected["train_loss"], history["train_loss"])
    assert trainer.training_state.diagnostics["train_loss"] == pytest.approx(
        history["train_loss"][-1]
    )


def test_cleanup_after_an_error():
    mine = Component()
    mine.update = lambda **kwargs: _raise(ValueError("no"))
    trainer = ModularTrainer(mlp(), config(), components={"mine": mine})
    with pytest.raises(ValueError, match="no"):
        trainer.train((X, Y))
    assert mine.calls[-1] == ("cleanup",)


def test_logs_and_alerts(tmp_path, caplog):
    log = LoggingConfig(
        backends=["jsonl", "csv", "tensorboard"], directory=str(tmp_path), frequency=2,
        alert_thresholds={"train_loss": 1e-9, "grad_norm": 1e9},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "opifex"):
        _, history = Trainer(
            mlp(), config(logging_config=log, validation_frequency=4)
        ).train((X, Y), (X, Y))
    alerts = [r.getMessage() for r in caplog.records if "threshold" in r.getMessage()]
    assert len(alerts) == 1 and alerts[0].startswith("train_loss = ")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    with (tmp_path / "history.csv").open() as file:
        table = list(csv.DictReader(file))
    for rows in (found, table):
        assert [int(row["epoch"]) for row in rows] == [2, 4, 6]
        losses = [float(row["train_loss"]) for row in rows]
        np.testing.assert_allclose(losses, history["train_loss"][1::2])
    assert "val_loss" not in found[0] and found[1]["val_loss"] == history["val_loss"][3]
    assert table[0]["val_loss"] == "" and float(table[2]["val_loss"]) > 0
    events = [p for p in tmp_path.iterdir() if "tfevents" in p.name]
    assert len(events) == 1 and b"train_loss" in events[0].read_bytes()


# Checkpoints.


KILLED = """
import os, signal, sys, time
import jax
jax.config.update("jax_enable_x64", True)
from tests.test_trainer import *

def kill(epoch, metrics):
    if epoch == 5:
        # Checkpoints are written in the background, and get their name at the end.
        while not any(name.isdigit() for name in os.listdir(sys.argv[1])):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

options = SAVING | {"checkpoint_dir": sys.argv[1], "progress_callback": kill}
Trainer(Net(nnx.Rngs(0)), config(**options)).train((X32, Y32), (X32, Y32))
"""
SAVING = {"checkpoint_frequency": 2, "validation_frequency": 3, "seed": 3}


def test_resume_goes_on_bit_for_bit(tmp_path):
    """From what a process that was killed after the 5th epoch left behind."""
    options, killed = SAVING, tmp_path / "killed"
    script = [sys.executable, "-c", KILLED, str(killed)]
    process = subprocess.Popen(script, stderr=subprocess.PIPE, text=True)
    whole, history = Trainer(Net(nnx.Rngs(0)), config(**options)).train(
        (X32, Y32), (X32, Y32)
    )
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    after = Trainer(Net(nnx.Rngs(9)), config(checkpoint_dir=killed, **options))
    with pytest.raises(ValueError, match="`train_data` is needed"):
        after.resume()
    state = after.load_checkpoint()
    # Checkpoints are written in the background: the last may not have been complete.
    begun = state.epoch
    assert begun in (2, 4) and state.step == 3 * begun
    model, rest = after.resume((X32, Y32), (X32, Y32))
    assert_same(model, whole)
    assert rest["epoch"].tolist() == list(range(begun + 1, 7))
    for name in ("train_loss", "val_loss", "grad_norm"):
        np.testing.assert_array_equal(rest[name], history[name][begun:])
    assert after.training_state.epoch == 6
    # It is at its end, and a new run must not overwrite it.
    again, nothing = after.resume()
    assert nothing["epochs"] == 0
    assert_same(again, whole)
    with pytest.raises(ValueError, match="of another run"):
        after.train((X32, Y32))
    # Older ones can be had, too.
    after.load_checkpoint(12)
    assert after.training_state.epoch == 4
    with pytest.raises(ValueError, match="`step` = 5 has no checkpoint"):
        after.load_checkpoint(5)


def test_checkpoints_by_hand(tmp_path):
    trainer = Trainer(mlp(), config(checkpoint_dir=tmp_path))
    with pytest.raises(ValueError, match="nothing to save"):
        trainer.save_checkpoint()
    losses = [trainer.training_step(X, Y) for _ in range(5)]
    assert losses[-1] < losses[0]
    trainer.save_checkpoint(5)
    with pytest.raises(ValueError, match="`step` must be that of the state, 5"):
        trainer.save_checkpoint(7)
    saved = trainer.model
    trainer.training_step(X, Y)
    assert trainer.load_checkpoint().step == 5
    assert_same(trainer.model, saved)
    with pytest.raises(ValueError, match="`checkpoint_dir` of the configuration"):
        Trainer(mlp(), config()).load_checkpoint()


# What is refused.

BAD_DATA = {
    "no pair": ((X,), {}, TypeError, "`train_data` must be a pair"),
    "rows": ((X, Y[:5]), {}, ValueError, "`train_data` must have as many inputs"),
    "width": ((jnp.ones((4, 3)), Y[:4]), {}, ValueError, r"train_data\[0\]`.*\(4, 3\)"),
    "outputs": ((X, jnp.ones((20, 2))), {}, ValueError, r"`train_data\[1\]` must have"),
    "nan": ((X, Y.at[3].set(jnp.nan)), {}, ValueError, r"data\[1\]` holds NaN.*3"),
    "empty": ((X[:0], Y[:0]), {}, ValueError, r"`train_data\[0\]` is empty"),
    "integers": ((X, jnp.ones((20, 1), int)), {}, ValueError, r"data\[1\]` must be"),
    "no points": ((None, None), {}, TypeError, r"`train_data\[0\]` must be an array"),
    "no targets": ((X, None), {}, ValueError, r"`train_data\[1\]` is `None`"),
    "val": ((X, Y), {"val_data": (X, Y[:1])}, ValueError, "`val_data` must have"),
    "boundary": (
        (X, Y), {"boundary_data": (X[:2], None)}, ValueError, r"`boundary_data\[1\]`"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case):
    data, others, error, message = BAD_DATA[case]
    model = mlp()
    trainer = Trainer(model, config())
    with pytest.raises(error, match=message):
        trainer.train(data, **others)
    assert trainer.model is model and trainer.training_state.step == 0


BAD_CONFIGS = {
    "dft": ({"dft_config": DFTConfig()}, TypeError, "train a density functional"),
    "weight": (
        {"loss_config": LossConfig(physics_weight=2.0)}, ValueError, "set_physics"
    ),
    "residual": (
        {"metrics_tracking_config": MetricsTrackingConfig(["physics_residual"])},
        ValueError, "no equation",
    ),
    "quadrature": (
        {"conservation_config": ConservationConfig(
            laws=["mass"], quadrature_weights=[1.0, 2.0])},
        ValueError, "`quadrature_weights` must be 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_what_cannot_be_had(case):
    options, error, message = BAD_CONFIGS[case]
    with pytest.raises(error, match=message):
        Trainer(mlp(), config(**options)).train((X, Y))


def test_bad_arguments():
    trainer = Trainer(mlp(), config(batch_size=8))
    with pytest.raises(ValueError, match="'epoch_end'"):
        trainer.register_hook("epoch_ends", print)
    with pytest.raises(ValueError, match="`name` = 'data'"):
        trainer.register_custom_loss("data", print)
    with pytest.raises(TypeError, match="Wrap a residual"):
        trainer.set_physics_loss(print)
    with pytest.raises(TypeError, match="`config` must be"):
        Trainer(mlp(), {"num_epochs": 3})
    with pytest.raises(TypeError, match="`rngs`"):
        Trainer(mlp(), config(), rngs=3)
    with pytest.raises(TypeError, match=r"`components\['a'\]`"):
        ModularTrainer(mlp(), config(), components={"a": print})
    trainer.register_custom_loss("mine", lambda f, x, y: jnp.sum(f(x)))
    with pytest.raises(ValueError, match="'mine' must give one number a row"):
        trainer.train((X, Y))
    physics = PhysicsInformedLoss(config=PhysicsLossConfig())
    other = Trainer(mlp(), config())
    other.set_physics_loss(physics)
    with pytest.raises(ValueError, match="nothing to train on"):
        other.train((X, None))
    with pytest.raises(TypeError, match=r"`train_data\[0\]` must be an array"):
        other.train((None, None))
