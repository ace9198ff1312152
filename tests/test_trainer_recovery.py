import math
from itertools import permutations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._checkpoint import Store
from opifex.core.training.config import TrainingConfig
from opifex.nnx.recovery import STRATEGIES
from opifex.training.basic_trainer import ModularTrainer
from opifex.training.recovery import ErrorRecoveryManager


X = jnp.linspace(-1, 1, 16)[:, None]
SAMPLER = opx.Fixed({"x": X})
GOOD = {"w": jnp.array([0.3, 0.4])}


class Line(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return x * self.weight


def trainer(manager=None, **options):
    options = {"num_epochs": 40, "batch_size": 16, "progress": False} | options
    options = {"optimizer": optax.sgd(0.5)} | options
    components = {} if manager is None else {"error_recovery": manager}
    model = Line(jnp.asarray(0.5))
    return ModularTrainer(model, TrainingConfig(**options), components=components)


def test_translation():
    given = {
        "max_retries": 5,
        "gradient_clip_threshold": 1.0,
        "loss_explosion_threshold": 100.0,
        "lr_factor": 0.25,
    }
    made = ErrorRecoveryManager(given).recovery
    assert isinstance(made, opx.Backtrack) and made.clips
    found = made.max_attempts, made.max_grad_norm, made.max_loss, made.factor
    assert found == (5, 1.0, 100.0, 0.25)
    assert made.max_reinits == 0 and made.spike_factor == 10.0
    assert [r.name for r in made.remedies] == ["CLIP", "SHORTEN", "REDRAW"]
    plain = ErrorRecoveryManager({"strategies": []}).recovery
    assert not plain.clips and plain.remedies == ()
    backwards = ErrorRecoveryManager({"strategies": list(STRATEGIES)[::-1]}).recovery
    assert backwards.clips and backwards.remedies == made.remedies[::-1]
    fixed = ErrorRecoveryManager({"adapt_threshold": False}).recovery
    assert fixed.clips and math.isinf(fixed.spike_factor)
    assert ErrorRecoveryManager().recovery.max_attempts == 3


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"max_retry": 3}, ValueError, "Did you mean 'max_retries'"),
        ({"max_retries": 0}, ValueError, "`max_retries`"),
        ({"gradient_clip_threshold": 0.0}, ValueError, "`gradient_clip_threshold`"),
        ({"lr_factor": 1.0}, ValueError, "`lr_factor`"),
        ({"checkpoint_on_error": 1}, TypeError, "checkpoint_on_error"),
        ({"strategies": ["clipping"]}, ValueError, "gradient_clipping"),
        ({"strategies": ["gradient_clipping"] * 2}, ValueError, "different"),
    ],
)
def test_bad_settings(config, error, message):
    with pytest.raises(error, match=message):
        ErrorRecoveryManager(config)


@pytest.mark.parametrize(
    ("loss", "grads", "issue"),
    [
        (1.0, GOOD, None),
        (math.nan, GOOD, "nan_loss"),
        (jnp.inf, GOOD, "nan_loss"),
        (1.0, {"w": jnp.array([jnp.nan])}, "nan_gradients"),
        (101.0, GOOD, "loss_explosion"),
        (1.0, {"w": jnp.array([3.0, 4.0])}, "gradient_explosion"),
    ],
)
def test_what_is_unstable(loss, grads, issue):
    manager = ErrorRecoveryManager(
        {"gradient_clip_threshold": 4.9, "loss_explosion_threshold": 100}
    )
    assert manager.check_training_stability(loss, grads) == (issue is None, issue)
    assert [e["issue"] for e in manager.history] == ([] if issue is None else [issue])
    if issue == "nan_gradients":
        assert manager.history[0]["array"] == "['w']"


def test_clipping_by_hand():
    manager = ErrorRecoveryManager({"gradient_clip_threshold": 1.0})
    clipped = manager.apply_gradient_clipping({"w": jnp.array([3.0, 4.0])})
    np.testing.assert_allclose(clipped["w"], [0.6, 0.8])
    assert manager.apply_gradient_clipping(GOOD) is GOOD
    with pytest.raises(ValueError, match="nan_gradients"):
        manager.apply_gradient_clipping({"w": jnp.array([jnp.nan])})
    # Norms of 0.01 for long: then the threshold is ten times their quantile.
    manager = ErrorRecoveryManager({"gradient_clip_threshold": 1.0})
    for _ in range(120):
        manager.apply_gradient_clipping({"w": jnp.array([0.01])})
    assert 0.09 < manager.clip_threshold < 0.25
    found = manager.apply_gradient_clipping({"w": jnp.array([0.5])})["w"]
    assert found[0] < 0.25
    # A few norms bound what follows already, by the cube of that factor.
    manager = ErrorRecoveryManager({"gradient_clip_threshold": 50.0})
    for norm in (0.01, 0.02, 0.01):
        manager.apply_gradient_clipping({"w": jnp.array([norm])})
    assert 9.9 < manager.clip_threshold < 20.1
    fixed = ErrorRecoveryManager({"adapt_threshold": False})
    for _ in range(120):
        fixed.apply_gradient_clipping({"w": jnp.array([0.01])})
    assert fixed.clip_threshold == 10.0


@pytest.mark.parametrize("order", list(permutations(STRATEGIES)))
def test_strategies_by_hand(order):
    """In a loop of one's own: back to what was seen to be stable, each time with one
    strategy more."""
    state = opx.init(optax.sgd(0.5), SAMPLER, opx.Skip(), Line(jnp.asarray(0.7)),
                     key=jr.key(0))  # fmt: skip
    manager = ErrorRecoveryManager({"strategies": order, "lr_factor": 0.25})
    manager.check_training_stability(1.0, GOOD, state)
    clip, scale = 10.0, 1.0
    state = eqx.tree_at(lambda s: s.model.weight, state, jnp.asarray(jnp.nan))
    for attempt in (1, 2, 3):
        taken = order[:attempt]
        state = manager.recover_from_instability("loss_explosion", state)
        clip *= 0.25 if "gradient_clipping" in taken else 1
        scale *= 0.25 if "learning_rate_reduction" in taken else 1
        assert (manager.clip_threshold, float(state.step_scale)) == (clip, scale)
        anew = "parameter_reinitialization" in taken
        assert np.isfinite(state.model.weight) and (state.model.weight != 0.7) == anew
        assert manager.history[-1]["taken"] == ["rollback", *taken]


def test_recovery_by_hand():
    made = trainer()
    made.training_step(X, 2 * X)
    state = made.training_state
    manager = ErrorRecoveryManager(
        {"lr_factor": 0.5, "strategies": list(STRATEGIES)[1:]}
    )
    assert manager.check_training_stability(1.0, GOOD, state) == (True, None)
    stable = float(state.core.model.weight)
    broken = eqx.tree_at(lambda s: s.model.weight, state.core, jnp.asarray(jnp.nan))
    recovered = manager.recover_from_instability("nan_loss", broken)
    assert float(recovered.model.weight) == stable
    # The optimizer sees it: a step is half of what it would have been.
    problem, batch = opx.Supervised(apply=opx.batched), opx.Pairs(X, 2 * X)
    steps = [
        opx.train_step(problem, optax.sgd(0.5), s, batch)[0].model.weight - stable
        for s in (state.core, recovered)
    ]
    np.testing.assert_allclose(steps[1], steps[0] / 2, 1e-12)
    for _ in range(2):
        recovered = manager.recover_from_instability("nan_loss", recovered)
    with pytest.raises(RuntimeError, match="`max_retries` = 3"):
        manager.recover_from_instability("nan_loss", recovered)
    events = [e for e in manager.history if e["event"] == "recovered"]
    assert [e["attempt"] for e in events] == [1, 2, 3]
    assert manager.recovery_attempts == 4
    with pytest.raises(RuntimeError, match="no finite state"):
        ErrorRecoveryManager().recover_from_instability("nan_loss", broken)
    with pytest.raises(ValueError, match="nan_loss"):
        ErrorRecoveryManager().recover_from_instability("nan_los", broken)
    with pytest.raises(TypeError, match="`state`"):
        ErrorRecoveryManager().recover_from_instability("nan_loss", 3)


def wall(f, x, y):
    """Nothing is finite where the slope of the model exceeds one."""
    del y
    return jnp.where(f(x)[:, 0] / x[:, 0] > 1.0, jnp.nan, 0.0)


def test_recovery_of_a_run(tmp_path):
    manager = ErrorRecoveryManager({"max_retries": 5})
    run = trainer(manager, checkpoint_dir=tmp_path, checkpoint_frequency=40)
    run.register_custom_loss("wall", wall)
    model, history = run.train((X, 2 * X))
    assert 0.5 < float(model.weight) <= 1.0
    counts = history["recovery"]
    assert counts["attempts"] == manager.recovery_attempts > 0
    assert counts["nonfinite_loss"] > 0 and counts["first"]["term"] == "wall"
    assert manager.history[-1]["counts"]["rolled_back"] == counts["rolled_back"]
    assert run.training_state.recovery["rolled_back"] == counts["rolled_back"]
    # The steps became shorter, and the history of the learning rate says so.
    assert history["step_scale"].min() < 1
    # One checkpoint is due, at the end; the others are where something went wrong.
    store = Store(tmp_path, keep=3)
    assert len(store._manager.all_steps()) > 1
    store.close()


def test_no_checkpoint_on_error(tmp_path):
    manager = ErrorRecoveryManager({"max_retries": 5, "checkpoint_on_error": False})
    run = trainer(manager, checkpoint_dir=tmp_path, checkpoint_frequency=40)
    run.register_custom_loss("wall", wall)
    run.train((X, 2 * X))
    store = Store(tmp_path, keep=3)
    assert list(store._manager.all_steps()) == [40]
    store.close()


def test_gradients_are_clipped_in_a_run():
    """A step of length at most lr times the threshold, whatever the gradient."""
    manager = ErrorRecoveryManager({"gradient_clip_threshold": 0.01})
    model, history = trainer(manager, num_epochs=3).train((X, 1e3 * X))
    np.testing.assert_allclose(model.weight, 0.5 + 3 * 0.5 * 0.01, 1e-12)
    assert history["recovery"]["clipped"] == 3


def test_a_fitting_model_may_be_trained_again():
    """The first steps of a fresh Adam raise a tiny loss by any factor."""
    run = trainer(optimizer="adam", learning_rate=1e-2)
    for _ in range(3):
        model, history = run.train((X, 0.5 * X + 1e-9))
    assert history["recovery"]["attempts"] == 0
    assert abs(float(model.weight) - 0.5) < 0.02
