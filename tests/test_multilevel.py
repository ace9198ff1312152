"""The documented doors to cascades, for modules of NNX and of Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

from opifex.neural import MLP
from opifex.neural.base import StandardMLP
from opifex.training.multilevel.coarse_to_fine import (
    CascadeTrainer,
    create_network_hierarchy,
    MultilevelAdam,
    MultilevelConfig,
    prolongate,
    restrict,
)
from opifex.training.multilevel.multilevel_fno import (
    create_fno_hierarchy,
    create_mode_hierarchy,
    MultilevelFNOConfig,
    MultilevelFNOTrainer,
    prolongate_fno_modes,
    restrict_fno_modes,
)


X = jnp.linspace(-1, 1.5, 24)[:, None]
Y = jnp.sin(3 * X)
MODEL = {"input_dim": 1, "output_dim": 1, "base_hidden_dims": [8, 12]}


def params(model):
    if isinstance(model, nnx.Module):
        return jax.tree.leaves(nnx.state(model, nnx.Param))
    return jax.tree.leaves(eqx.filter(model, eqx.is_array))


def same(one, other):
    pairs = zip(params(one), params(other), strict=True)
    return all(jnp.array_equal(a, b) for a, b in pairs)


def gradient(model, x, y):
    loss = lambda m: jnp.mean((m(x) - y) ** 2)
    return nnx.grad(loss)(model)


def rows(model):
    return model if isinstance(model, nnx.Module) else jax.vmap(model)


def networks(kind):
    if kind == "nnx":
        return create_network_hierarchy(
            1, 1, [8, 12], 2, activation="tanh", rngs=nnx.Rngs(0)
        )
    if kind == "equinox":
        make = lambda width: eqx.nn.MLP(1, 1, width, 2, jnp.tanh, key=jr.key(1))
        return [make(4), make(9)]
    return [MLP((1, w, 1), key=jr.key(2)) for w in (3, 8)]


@pytest.mark.parametrize("kind", ["nnx", "equinox", "ours"])
def test_widths(kind):
    coarse, fine = networks(kind)
    before = [jnp.array(x) for x in params(fine)]
    grown = prolongate(coarse, fine)
    want = rows(coarse)(X)
    assert type(grown) is type(fine)
    assert jnp.max(jnp.abs(rows(grown)(X) - want)) <= 1e-12 * jnp.max(jnp.abs(want))
    assert same(restrict(grown, coarse), coarse)
    # Neither is touched, and the new units are alive.
    assert all(jnp.array_equal(a, b) for a, b in zip(before, params(fine), strict=True))
    if kind == "nnx":
        moved = jax.tree.leaves(gradient(grown, X, Y))
        assert all(jnp.all(g != 0) for g in moved)


def test_hierarchy_of_widths():
    options = {"num_levels": 4, "coarsening_factor": 0.3, "rngs": nnx.Rngs(0)}
    found = create_network_hierarchy(2, 3, [10, 7], **options)
    sizes = [(2, 1, 1, 3), (2, 1, 1, 3), (2, 3, 2, 3), (2, 10, 7, 3)]
    assert [m.layer_sizes for m in found] == sizes


def test_modes():
    dim = 2
    coarse, fine = create_fno_hierarchy(
        3, 2, 1, 2, 2, num_layers=1, dim=dim, rngs=nnx.Rngs(0)
    )
    u = jr.normal(jr.key(1), (2, 6, 7, 1))
    grown, want = prolongate_fno_modes(coarse, fine), coarse(u)
    assert want.shape == (*u.shape[:-1], 2)
    assert jnp.max(jnp.abs(grown(u) - want)) <= 1e-12 * jnp.max(jnp.abs(want))
    assert grown.model.modes == (3,) * dim and coarse.model.modes == (1,) * dim
    assert same(restrict_fno_modes(grown, coarse), coarse)


def test_hierarchy_of_modes():
    assert create_mode_hierarchy(12, 3) == [3, 6, 12]
    assert create_mode_hierarchy(5, 4, 3) == [1, 1, 1, 5]


@pytest.mark.parametrize("make", [MultilevelAdam, lambda rate: optax.sgd(rate, 0.9)])
def test_steps_by_hand(make):
    """The steps are those of optax; at the next level they go on with the moments of
    the gradients that the wider network would have had."""
    config = MultilevelConfig(2, level_epochs=[1, 1])
    trainer = CascadeTrainer(
        **MODEL, config=config, activation="tanh", optimizer=make(1e-2)
    )
    held = trainer.get_current_model()
    twin = nnx.clone(held)
    own = nnx.Optimizer(twin, make(1e-2), wrt=nnx.Param)
    for _ in range(3):
        assert trainer.step(gradient(held, X, Y)) is held is trainer.model
        with jax.numpy_dtype_promotion("standard"):
            own.update(twin, gradient(twin, X, Y))
    for a, b in zip(params(held), params(twin), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)

    want = held(X)
    assert (trainer.current_level, trainer.is_at_finest()) == (0, False)
    assert trainer.advance_level()
    assert (trainer.current_level_index, trainer.is_at_finest()) == (1, True)
    wide = trainer.model
    np.testing.assert_allclose(wide(X), want, rtol=0, atol=1e-14)
    assert [layer.kernel.shape for layer in wide.layers] == [(1, 8), (8, 12), (12, 1)]
    moments = [
        x for x in jax.tree.leaves(trainer.opt_state) if getattr(x, "ndim", 0) == 2
    ]
    assert all(jnp.any(m != 0) for m in moments)
    before = jnp.mean((want - Y) ** 2)
    for _ in range(5):
        trainer.step(gradient(wide, X, Y))
        assert jnp.mean((wide(X) - Y) ** 2) < before
    assert not trainer.advance_level()


def test_a_cascade_is_trained():
    config = MultilevelConfig(
        num_levels=3, level_epochs=[20, 10, 20], warmup_epochs=5, coarsening_factor=0.5
    )
    trainer = CascadeTrainer(
        **MODEL, config=config, activation="tanh", optimizer=optax.adam(1e-2)
    )
    start = trainer.evaluate(X, Y)
    model, history = trainer.train((X, Y), (X, Y), batch_size=8)
    assert model is trainer.get_current_model() and trainer.is_at_finest()
    assert trainer.get_epochs_for_current_level() == 25
    losses, levels = history["train_loss"], history["level"]
    assert list(np.bincount(levels)) == [20, 10, 25] and losses.shape == (55,)
    assert losses[-1] < 0.2 * start
    # No bump where the size changes.
    for i in (20, 30):
        assert losses[i] < 1.2 * losses[i - 1]
    np.testing.assert_allclose(history["val_loss"][-1], jnp.mean((model(X) - Y) ** 2))


def test_ways_of_ones_own():
    """A hierarchy of Equinox networks, with functions of the user's own."""
    hierarchy, seen = networks("ours"), []

    def grow(coarse, fine):
        seen.append((coarse, fine))
        return prolongate(coarse, fine)

    def begin(opt_state, coarse, fine):
        seen.append(opt_state)
        return optax.sgd(1e-2).init(eqx.filter(fine, eqx.is_array))

    trainer = CascadeTrainer(
        hierarchy=hierarchy,
        optimizer=optax.sgd(1e-2),
        prolongate_fn=grow,
        state_transition_fn=begin,
    )
    loss = lambda m: jnp.mean((jax.vmap(m)(X) - Y) ** 2)
    first = trainer.step(eqx.filter_grad(loss)(trainer.model))
    assert loss(first) < loss(hierarchy[0])
    assert trainer.advance_level() and len(seen) == 2 and seen[0][0] is first
    np.testing.assert_allclose(loss(trainer.model), loss(first), rtol=1e-12)
    assert trainer.get_epochs_for_current_level() == 200


def test_operators_on_growing_grids():
    k, x = jnp.arange(1.0, 4.0), jnp.arange(16.0) / 16
    a = jr.normal(jr.key(0), (20, 3))
    inputs = (a @ jnp.sin(2 * jnp.pi * jnp.outer(k, x)))[..., None]
    targets = jnp.roll(inputs, 3, axis=1)
    config = MultilevelFNOConfig(3, base_modes=4, level_epochs=[8, 4, 8])
    trainer = MultilevelFNOTrainer(
        4, 1, 1, config, num_layers=1, optimizer=optax.adam(1e-2), rngs=nnx.Rngs(0)
    )
    grids = []
    for _ in range(3):
        grids.append(trainer.level_data(inputs, targets)[0].shape[1])
        trainer.advance_level()
    assert grids == [4, 8, 16]
    trainer = MultilevelFNOTrainer(
        4, 1, 1, config, num_layers=1, optimizer=optax.adam(1e-2), rngs=nnx.Rngs(0)
    )
    start = trainer.evaluate(inputs, targets)
    model, history = trainer.train((inputs, targets), batch_size=5)
    assert trainer.evaluate(inputs, targets) < 0.7 * start
    assert model(inputs).shape == targets.shape and len(history["level"]) == 20


def wide():
    return StandardMLP([1, 9, 1], "tanh", rngs=nnx.Rngs(0))


def deep():
    return StandardMLP([1, 9, 9, 1], "tanh", rngs=nnx.Rngs(0))


def narrow(activation="tanh"):
    return StandardMLP([1, 4, 1], activation, rngs=nnx.Rngs(0))


def operators(modes, levels=1):
    return create_fno_hierarchy(modes, 2, 1, 1, levels, num_layers=1, rngs=nnx.Rngs(0))


ONE = {"rngs": nnx.Rngs(0)}
BAD = {
    "wider": (lambda: prolongate(wide(), narrow()), ValueError, "must be the smaller"),
    "depth": (lambda: prolongate(narrow(), deep()), ValueError, "same depth"),
    "activation": (
        lambda: prolongate(narrow("sin"), wide()),
        ValueError,
        "same activation",
    ),
    "kinds": (
        lambda: restrict(wide(), networks("ours")[0]),
        TypeError,
        "must be of one kind",
    ),
    "modes": (
        lambda: prolongate_fno_modes(operators(4)[0], operators(3)[0]),
        ValueError,
        "must be the smaller",
    ),
    "grid": (
        lambda: operators(4)[0](jnp.ones((1, 6, 1))),
        ValueError,
        r"too few for `modes` of \(4,\), which need \(7,\)",
    ),
    "factor": (
        lambda: create_network_hierarchy(1, 1, [4], 2, 1.5, **ONE),
        ValueError,
        "`coarsening_factor` must lie between 0 and 1, got 1.5",
    ),
    "levels": (
        lambda: create_mode_hierarchy(4, 0),
        ValueError,
        "`num_levels`",
    ),
    "epochs": (
        lambda: MultilevelConfig(2),
        ValueError,
        "`level_epochs` must hold one number a level, 2 in all",
    ),
    "name": (lambda: MultilevelConfig(levels=2), TypeError, "'num_levels'"),
    "fno name": (lambda: MultilevelFNOConfig(modes=2), TypeError, "'base_modes'"),
    "neither": (lambda: CascadeTrainer(input_dim=1), TypeError, "or `hierarchy`"),
    "empty": (lambda: CascadeTrainer(hierarchy=[]), ValueError, "num_levels|empty"),
    "gradients": (
        lambda: CascadeTrainer(**MODEL).step(gradient(wide(), X, Y)),
        ValueError,
        "`grads` must have the parameters",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
