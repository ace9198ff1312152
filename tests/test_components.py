"""The documented components: optimizers by name, and what users derive from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx

import opifex as opx
from opifex._optimizer.factory import (
    named_optimizer,
    OPTIMIZERS,
    searches_along_a_line,
)
from opifex._optimizer.schedules import reduced_on_plateau, SCHEDULES
from opifex.core.training.config import OptimizationConfig, TrainingConfig
from opifex.training.components import (
    FlexibleOptimizerFactory as Factory,
    TrainingComponentBase,
)

from .helpers import mlp


RATE = 0.1
TYPE = "optimizer_type"
ADAM = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
B = {"b1": 0.8, "b2": 0.95}
DECAYED = optax.add_decayed_weights(0.3)

# The settings by the documented names, and the same in the words of optax.
SAME = {
    "adabelief": (ADAM, optax.adabelief(RATE, **B, eps=1e-3)),
    "adagrad": ({"eps": 1e-3}, optax.adagrad(RATE, eps=1e-3)),
    "adam": (ADAM, optax.adam(RATE, **B, eps=1e-3)),
    "adamax": (ADAM, optax.adamax(RATE, **B, eps=1e-3)),
    "adamw": (
        ADAM | {"weight_decay": 0.3},
        optax.adamw(RATE, **B, eps=1e-3, weight_decay=0.3),
    ),
    "amsgrad": (ADAM, optax.amsgrad(RATE, **B, eps=1e-3)),
    "lamb": (
        ADAM | {"weight_decay": 0.3},
        optax.lamb(RATE, **B, eps=1e-3, weight_decay=0.3),
    ),
    "lbfgs": ({}, optax.lbfgs()),
    "lion": (
        {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.3},
        optax.lion(RATE, **B, weight_decay=0.3),
    ),
    "muon": (
        ADAM | {"momentum": 0.7, "weight_decay": 0.3},
        optax.contrib.muon(
            RATE,
            beta=0.7,
            eps=1e-3,
            weight_decay=0.3,
            adam_b1=0.8,
            adam_b2=0.95,
            adam_weight_decay=0.3,
        ),
    ),
    "nadam": (ADAM, optax.nadam(RATE, **B, eps=1e-3)),
    "nadamw": (
        ADAM | {"weight_decay": 0.3},
        optax.nadamw(RATE, **B, eps=1e-3, weight_decay=0.3),
    ),
    "radam": (ADAM, optax.radam(RATE, **B, eps=1e-3)),
    "rmsprop": (
        {"momentum": 0.7, "beta2": 0.95, "eps": 1e-3},
        optax.rmsprop(RATE, decay=0.95, eps=1e-3, momentum=0.7),
    ),
    "sgd": ({"momentum": 0.7}, optax.sgd(RATE, momentum=0.7)),
    "soap": (
        {**ADAM, "weight_decay": 0.3},
        opx.soap(RATE, **B, eps=1e-3, weight_decay=0.3),
    ),
    "yogi": (ADAM, optax.yogi(RATE, **B, eps=1e-3)),
    # What all have that do not search along a line.
    "sgd decayed": ({"weight_decay": 0.3}, optax.chain(DECAYED, optax.sgd(RATE))),
    "adam decayed": ({"weight_decay": 0.3}, optax.chain(DECAYED, optax.adam(RATE))),
    "sgd clipped": (
        {"grad_clip": 0.5},
        optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(RATE)),
    ),
    "adamw clipped": (
        {"grad_clip": 0.5, "weight_decay": 0.3},
        optax.chain(
            optax.clip_by_global_norm(0.5), optax.adamw(RATE, weight_decay=0.3)
        ),
    ),
}
SEARCHES = tuple(name for name in OPTIMIZERS if searches_along_a_line(name))
START = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.3, -0.1])}


@opx.SumOfSquares
def valley(params):
    scaled = jnp.sqrt(jnp.array([[0.5, 2.0]])) * params["w"]
    return jnp.concatenate([scaled.reshape(-1), jnp.sqrt(jnp.cosh(params["b"]))])


def descend(optim, steps=5):
    """Where an optimizer leads."""
    update = optax.with_extra_args_support(optim).update

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(valley)(params)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            more = {"value": value, "grad": grad, "value_fn": valley}
            updates, state = update(grad, state, params, **more)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda: jax.lax.scan(step, (START, optim.init(START)), length=steps))
    return run()[0][0]


def config_of(name, settings):
    rate = {} if name in SEARCHES else {"learning_rate": RATE}
    return {"optimizer_type": name, **rate, **settings}


def assert_close(one, other, **kwargs):
    jtu.tree_map(lambda a, b: np.testing.assert_allclose(a, b, **kwargs), one, other)


@pytest.mark.parametrize("case", SAME)
def test_optimizers_are_those_of_optax(case):
    settings, reference = SAME[case]
    factory = Factory(config_of(case.split()[0], settings))
    assert_close(descend(factory.create_optimizer()), descend(reference), rtol=1e-12)


OWN = ("bfgs", "engd", "levenberg_marquardt", "nncg", "ssbfgs", "ssbroyden")


def test_every_optimizer_is_compared():
    assert {case.split()[0] for case in SAME} | set(OWN) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OWN)
def test_second_order_by_name(name):
    made, own = Factory({TYPE: name}).create_optimizer(), getattr(opx, name)()
    # The name is in what they say, and what they are is in their state.
    assert_close(made.init(START), own.init(START))
    with pytest.raises(TypeError, match=f"`{name}` looks at"):
        made.update(START, made.init(START), START)


EFFECTS = [
    (name, key, value)
    for name, (settings, _) in SAME.items()
    for key, value in {**settings, "grad_clip": 0.5, "weight_decay": 0.3}.items()
    if name in ("adamw", "muon", "rmsprop", "sgd")
]


@pytest.mark.parametrize(("name", "key", "value"), EFFECTS)
def test_every_setting_has_an_effect(name, key, value):
    plain, changed = (
        descend(named_optimizer(name, RATE, **settings), steps=3)
        for settings in ({}, {key: value})
    )
    distance = sum(float(jnp.sum(jnp.abs(plain[k] - changed[k]))) for k in plain)
    assert distance > 1e-6


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(OWN)))
def test_every_optimizer_trains(name):
    x = jnp.linspace(-1, 1, 32)[:, None]
    optim = Factory(config_of(name, {})).create_optimizer(mlp(jr.key(0)))
    sampler = opx.Fixed(opx.Pairs(x, jnp.sin(3 * x)))
    recipe = opx.Recipe(opx.Supervised(), optim, sampler, opx.NoRecovery(), steps=40)
    run = eqx.filter_jit(recipe)
    state, infos = run(recipe.init(mlp(jr.key(0)), key=jr.key(1)))
    assert bool(jnp.all(jnp.isfinite(infos.loss)))
    assert infos.loss[-1] < 0.8 * infos.loss[0]


STEPS = jnp.array([0, 1, 7, 50, 99, 100, 150])
CURVES = {
    "constant": ({}, lambda n: jnp.full(n.shape, RATE)),
    "cosine": (
        {"cosine_alpha": 0.1},
        lambda n: RATE * (0.1 + 0.9 * 0.5 * (1 + jnp.cos(jnp.pi * n / 100))),
    ),
    "exponential": (
        {"decay_rate": 0.5, "decay_steps": 20},
        lambda n: RATE * 0.5 ** (n / 20),
    ),
    "linear": ({}, lambda n: RATE * (1 - n / 100)),
    "warmup_cosine": (
        {"cosine_alpha": 0.1, "warmup_steps": 20},
        lambda n: jnp.where(
            n < 20,
            RATE * n / 20,
            RATE * (0.1 + 0.9 * 0.5 * (1 + jnp.cos(jnp.pi * (n - 20) / 80))),
        ),
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_schedules_are_their_formulas(name):
    settings, curve = CURVES[name]
    config = {"schedule_type": name, "learning_rate": RATE, "total_steps": 100}
    factory = Factory(config | settings)
    values = jax.vmap(factory.create_schedule())(STEPS)
    ends = STEPS if name == "exponential" else jnp.minimum(STEPS, 100)
    np.testing.assert_allclose(
        values, curve(ends.astype(float)), rtol=1e-12, atol=1e-17
    )
    # The optimizer moves by it: after as many steps as the schedule, two of SGD differ.
    moved = descend(
        Factory(config | settings | {"optimizer_type": "sgd"}).create_optimizer()
    )
    assert_close(moved, descend(optax.sgd(factory.create_schedule())), rtol=1e-12)
    # Each setting has an effect.
    for key in settings:
        rest = {k: v for k, v in settings.items() if k != key}
        other = jax.vmap(Factory(config | rest).create_schedule())(STEPS)
        assert not np.allclose(other, values)


def test_defaults_and_what_the_trainer_fills_in():
    factory = Factory()
    assert_close(descend(factory.create_optimizer()), descend(optax.adam(1e-3)))
    factory = Factory({"optimizer_type": "adamw", "schedule_type": "cosine"})
    by_hand, filled = (
        factory.create_schedule(),
        factory.create_schedule(learning_rate=0.5, total_steps=10),
    )
    assert float(by_hand(0)) == 1e-3 and float(by_hand(1000)) == 0 < by_hand(999)
    assert float(filled(0)) == 0.5 and float(filled(10)) == 0 < filled(9)
    # What the settings say holds.
    own = Factory({"learning_rate": 0.25, "schedule_type": "linear", "total_steps": 4})
    schedule = own.create_schedule(learning_rate=0.5, total_steps=10)
    assert float(schedule(0)) == 0.25 and float(schedule(4)) == 0
    settings = OptimizationConfig("sgd", learning_rate=RATE)
    assert Factory(settings).settings == settings


def test_the_training_config_makes_the_same():
    config = TrainingConfig(
        learning_rate=RATE,
        optimizer="sgd",
        optimization_config=OptimizationConfig(
            momentum=0.7, schedule_type="linear", total_steps=None
        ),
    )
    schedule = optax.linear_schedule(RATE, 0.0, 8)
    reference = optax.sgd(schedule, momentum=0.7)
    assert_close(descend(config.make_optimizer(8)), descend(reference), rtol=1e-12)
    assert config.make_schedule(8)(4) == schedule(4)
    assert TrainingConfig(optimizer="lbfgs").make_schedule(8) is None
    own = optax.sgd(0.1)
    assert TrainingConfig(optimizer=own).make_optimizer(8) is own


def test_the_model_is_looked_at():
    factory = Factory({"optimizer_type": "ssbroyden"})
    module = nnx.Linear(2, 1, param_dtype=complex, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`ssbroyden` trains real parameters"):
        factory.create_optimizer(module)
    module = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="needs float64.*`single_precision=True`"):
        factory.create_optimizer(module)
    config = factory.config | {"single_precision": True}
    Factory(config).create_optimizer(module)


def test_the_rate_falls_on_a_plateau():
    config = {TYPE: "sgd", "learning_rate": RATE, "schedule_type": "plateau"}
    config |= {"plateau_patience": 2, "plateau_factor": 0.25, "plateau_window": 3}
    optim = Factory(config).create_optimizer()
    reference = reduced_on_plateau(optax.sgd(RATE), patience=2, factor=0.25, window=3)
    assert_close(descend(optim), descend(reference), rtol=1e-12)
    state, moves = optim.init(START), []
    for loss in [1.0] * 3 + [0.5] * 9:
        # The first window is new, so is the second; two more are not.
        with jax.numpy_dtype_promotion("standard"):
            moved, state = optim.update(START, state, START, value=jnp.array(loss))
        moves.append(float(moved["b"][0] / START["b"][0]))
    np.testing.assert_allclose(moves, [-RATE] * 11 + [-RATE / 4])
    with pytest.raises(ValueError, match="'plateau' follows the loss"):
        Factory(config).create_schedule()
    trainer = OptimizationConfig("sgd", schedule_type="plateau")
    assert TrainingConfig(optimization_config=trainer).make_schedule(8) is None


def test_every_schedule_warms_up():
    for name in SCHEDULES:
        config = {"schedule_type": name, "learning_rate": RATE, "total_steps": 10}
        if name != "plateau":
            warm = Factory(config | {"warmup_steps": 4}).create_schedule()
            np.testing.assert_allclose(jax.vmap(warm)(STEPS[:2]), [0, RATE / 4])
            rest = name.removeprefix("warmup_")
            plain = Factory(config | {"schedule_type": rest, "total_steps": 6})
            plain = plain.create_schedule()
            np.testing.assert_allclose(warm(4 + 5), plain(5), rtol=1e-12)


BAD = {
    "key": ({"learning_rat": 0.1}, "'learning_rat' in `config`. Did you mean 'learnin"),
    "optimizer": (
        {TYPE: "adamv"},
        "Unknown name 'adamv' in `optimizer_type`. Did you me",
    ),
    "schedule": ({"schedule_type": "cosin"}, "`schedule_type`. Did you mean 'cosine'"),
    "momentum": (
        {TYPE: "adam", "momentum": 0.9},
        "no meaning for the optimizer 'adam'",
    ),
    "beta": (
        {TYPE: "sgd", "beta1": 0.9},
        "`beta1` = 0.9 has no meaning for the optimize",
    ),
    "alpha": ({"cosine_alpha": 0.1}, "no meaning for the schedule 'constant'"),
    "plateau": ({"plateau_patience": 3}, "no meaning for the schedule 'constant'"),
    "factor": (
        {"schedule_type": "plateau", "plateau_factor": 2.0},
        "`factor` must lie between 0 and 1, got 2.0",
    ),
    "rate": ({TYPE: "lbfgs", "learning_rate": 0.1}, "searches along a line"),
    "clip": ({TYPE: "ssbroyden", "grad_clip": 0.1}, "`grad_clip` = 0.1 has no meaning"),
    "negative": ({"learning_rate": -1.0}, "`learning_rate` must be a finite number gr"),
    "steps": ({"total_steps": 0}, "`total_steps` must be a whole number"),
    "beta range": ({"beta2": 1.0}, "`beta2` must be at least 0 and less than 1"),
    "warmup": (
        {"schedule_type": "warmup_cosine", "total_steps": 5, "warmup_steps": 5},
        "`warmup_steps` must lie between 0 and `total_steps` = 5, got 5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    config, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Factory(config)


def test_no_schedule_of_a_line_search():
    with pytest.raises(ValueError, match="'lbfgs' searches along a line"):
        Factory({"optimizer_type": "lbfgs"}).create_schedule()


def test_components_are_derived_from():
    class Counts(TrainingComponentBase):
        def initialize(self, **kwargs):
            self.seen = list(kwargs)

        def update(self, **kwargs):
            self.seen += sorted(kwargs)

    component = Counts({"a": 1})
    component.initialize(rate=0.1)
    component.setup(None, None)
    component.update(epoch=1, state=None, metrics={})
    component.cleanup()
    assert component.seen == ["rate", "epoch", "metrics", "state"]
    assert component.config == {"a": 1} and TrainingComponentBase().config == {}
    assert isinstance(Factory(), TrainingComponentBase)

    class Own(TrainingComponentBase):
        def __init__(self):
            self.mine = 1

    assert dict(Own().config) == {}
