"""The learned optimizer: Adam at zero, its symmetries, its safeguard, and PES."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import opifex as opx
from opifex._optimizer.learned.network import SHAPES, zero_weights
from opifex._optimizer.learned.pes import PES
from opifex._optimizer.learned.safeguard import Trust, WINDOW
from opifex._optimizer.learned.storage import SHIPPED
from opifex.core.training.config import TrainingConfig
from opifex.optimization import (
    load_provenance,
    load_weights,
    meta_train,
    MetaOptimizer,
    save_weights,
    Task,
)
from opifex.training.basic_trainer import BasicTrainer

from .helpers import assert_same_bits, regression


def drawn_weights(scale=0.5):
    draw = np.random.default_rng(0).normal
    weights = zero_weights()
    arrays = [jnp.asarray(scale * draw(size=SHAPES[name])) for name in SHAPES]
    return eqx.tree_at(lambda w: [getattr(w, name) for name in SHAPES], weights, arrays)


def biased(factor=0.0, gradient=0.0, slow=0.0):
    """A network that always answers the same."""
    return replace(zero_weights(), out_bias=jnp.array([factor, gradient, slow]))


def valley(params):
    """Rosenbrock's in four variables, and a bowl."""
    x = params["x"]
    steep = 100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2
    return jnp.sum(steep) + jnp.sum((params["y"] - 3) ** 2)


START = {"x": jnp.array([-1.0, 1.0, 0.5, -0.5]), "y": jnp.zeros((2, 3))}


def run(optim, length, loss=valley, params=START, pass_value=True):
    """The losses, the last parameters, and the last state."""
    optim = optax.with_extra_args_support(optim)

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        extra = {"value": value} if pass_value else {}
        updates, state = optim.update(grad, state, params, **extra)
        return (optax.apply_updates(params, updates), state), value

    def whole(params):
        start = params, optim.init(params)
        return jax.lax.scan(step, start, None, length=length)

    with jax.numpy_dtype_promotion("standard"):
        (params, state), losses = jax.jit(whole)(params)
    return losses, params, state


def close(one, other, rtol):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-300)
    jax.tree.map(compare, one, other)


@pytest.mark.parametrize("safeguard", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_zero_weights_are_adam(dtype, safeguard):
    params = jax.tree.map(lambda x: x.astype(dtype), START)
    optim = MetaOptimizer(3e-2, zero_weights(), safeguard)
    losses, last, _ = run(optim, 40, params=params)
    wanted, wanted_last, _ = run(optax.adam(3e-2), 40, params=params)
    rtol = 1e-12 if dtype == jnp.float64 else 1e-4
    close((losses, last), (wanted, wanted_last), rtol)
    assert last["x"].dtype == dtype


def test_symmetries():
    """The scale of the loss is not seen, nor are signs; what has no gradient rests."""
    optim, signs = MetaOptimizer(1e-2, drawn_weights()), jnp.array([1.0, -1, -1, 1])
    losses, last, _ = run(optim, 20)
    assert not np.allclose(losses, run(optax.adam(1e-2), 20)[0], rtol=1e-2)
    scaled = run(optim, 20, lambda p: 1e6 * valley(p))
    close(scaled[:2], (1e6 * losses, last), rtol=1e-4)
    turned = lambda p: p | {"x": signs * p["x"]}
    mirrored = run(optim, 20, lambda p: valley(turned(p)), turned(START))
    close(mirrored[:2], (losses, turned(last)), rtol=1e-9)
    flat = run(optim, 20, lambda p: jnp.sum(p["x"] ** 2))[1]
    np.testing.assert_array_equal(flat["y"], START["y"])


def test_one_step_by_hand():
    """Of a constant network, from the formulas: the first step is along the sign."""
    factor, gradient, slow = 0.7, 0.2, -0.4
    optim = MetaOptimizer(1e-2, biased(factor, gradient, slow))
    grads = {"x": jnp.array([3.0, -0.5])}
    params = {"x": jnp.array([1.0, 2.0])}
    updates, _ = optim.update(grads, optim.init(params), params)
    limit = np.log(30)
    length = np.exp(limit * np.tanh(factor / limit))
    wanted = -1e-2 * length * (1 + np.tanh(gradient) + np.tanh(slow))
    np.testing.assert_allclose(updates["x"], wanted * np.array([1, -1]), rtol=1e-7)


def test_members_of_an_ensemble_do_not_meet():
    optim = MetaOptimizer(3e-2, drawn_weights())
    starts = [jax.tree.map(lambda x, i=i: x + 0.1 * i, START) for i in range(3)]
    lost = jax.tree.map(lambda x: x * jnp.nan, START)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *starts, lost)
    together = jax.vmap(lambda p: run(optim, 15, params=p)[:2])(stacked)
    for i, start in enumerate(starts):
        alone = run(optim, 15, params=start)[:2]
        close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-8)


ABSURD = {
    "uphill": biased(factor=3.0, gradient=-9.0, slow=-9.0),
    "too_long": biased(factor=50.0, gradient=9.0, slow=9.0),
    "overshooting": biased(factor=50.0, gradient=-9.0, slow=9.0),
}


def bowl(params):
    return jnp.sum(jnp.arange(1.0, 5.0) * params["x"] ** 2) + jnp.sum(
        (params["y"] - 3) ** 2
    )


@pytest.mark.parametrize("weights", ABSURD.values(), ids=ABSURD)
def test_safeguard_falls_back_to_adam(weights):
    """Uphill at first, and at every relapse; still down like Adam in the long run."""
    adam = run(optax.adam(3e-3), 600, bowl)[0]
    guarded = run(MetaOptimizer(3e-3, weights), 3000, bowl)[0]
    assert adam[-1] < 0.25 * adam[0]
    assert guarded[-1] < adam[-1]


def test_safeguard_is_needed_and_needs_the_loss():
    """What the test above asks is not met without it, or without `value`."""
    short = MetaOptimizer(3e-3, ABSURD["uphill"], safeguard=False)
    assert run(short, 300, bowl)[0][-1] > bowl(START)
    blind = MetaOptimizer(3e-3, ABSURD["uphill"])
    losses, _, state = run(blind, 300, bowl, pass_value=False)
    assert losses[-1] > bowl(START)
    assert state.trust.trust == 1


def test_trust_by_hand():
    see = jax.jit(lambda trust, value: trust.saw(value)[0])
    trust = Trust.start()
    windows = {  # by their losses: the best, the level and the trust at their end
        (8.0,): (8, 8, 1),
        (4.0,): (4, 4, 1),
        (4.9, 5.0): (4.08, 4.95, 1),  # neither a new best nor above 5
        (5.0, 5.3): (4.1616, 5.15, 0.25),  # above 5.1
        (3.0,): (3, 3, 0.376),
    }
    for values, wanted in windows.items():
        before = float(trust.trust)
        for i in range(WINDOW):
            assert trust.trust == before
            trust = see(trust, jnp.array(values[i % len(values)]))
        seen = trust.best, trust.level, trust.trust
        np.testing.assert_allclose(seen, wanted, rtol=1e-12)
    for value, cuts in [(29.9, 0), (30.1, 1), (jnp.nan, 2), (jnp.inf, 3)]:
        trust = see(trust, jnp.array(value))
        np.testing.assert_allclose(trust.trust, 0.376 / 4**cuts, rtol=1e-12)
    assert jnp.isfinite(trust.total)
    # Negative losses count too.
    low = see(Trust.start(), jnp.array(-4.0))
    assert see(low, jnp.array(31.9)).trust == 1
    assert see(low, jnp.array(32.1)).trust == 0.25


def test_shipped_weights_train(key):
    recipe, model = regression(optim=MetaOptimizer(), steps=50)
    state = recipe.init(model, key=key)
    collect = opx.Collect((chunks := []).append)
    opx.fit(recipe, state, num_chunks=8, callbacks=[collect])
    losses = opx.join(chunks).loss
    assert losses[-50:].mean() < 0.05 * losses[0]


def test_shipped_weights_have_an_origin():
    origin = load_provenance()
    assert {"seed", "steps", "tasks", "versions", "method"} <= set(origin)
    assert origin["steps"] > 100
    with np.load(SHIPPED, allow_pickle=False) as file:
        assert sum(file[name].size for name in SHAPES) < 500
    assert any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(load_weights()))


def test_weights_in_files(tmp_path):
    weights = drawn_weights()
    save_weights(tmp_path / "mine.npz", weights, {"seed": 3})
    assert_same_bits(load_weights(tmp_path / "mine.npz"), weights)
    assert load_provenance(tmp_path / "mine.npz") == {"seed": 3}
    np.savez(tmp_path / "other.npz", local=np.zeros(3))
    with pytest.raises(ValueError, match="'bias', 'out', .* are missing"):
        load_weights(tmp_path / "other.npz")


def quadratic_init(key):
    return jnp.array([1.0, -2.0]), jnp.array([1.0, 5.0])


def quadratic(params, data, key):
    return 0.5 * jnp.sum(data * params**2) + 0.1


QUADRATIC = Task(quadratic_init, quadratic)


def test_pes_is_unbiased():
    """Its gradient over two unrolls, against that of reverse mode through both."""
    pairs, unroll = 4096, 5
    pes = PES((QUADRATIC,), unroll, 2 * unroll, pairs, sigma=1e-3, inner_rate=3e-2)
    weights = drawn_weights(0.3)

    def whole(weights):
        params, data = quadratic_init(None)
        optim = MetaOptimizer(3e-2, weights, safeguard=False)
        state, values = optim.init(params), []
        for _ in range(2 * unroll):
            value, grad = jax.value_and_grad(quadratic)(params, data, None)
            updates, state = optim.update(grad, state, params, value=value)
            values.append(value)
            params = optax.apply_updates(params, updates)
        first = jnp.log(quadratic(*quadratic_init(None), None))
        return jnp.log(jnp.stack(values)).reshape(2, unroll).mean(1) - first

    exact = jax.jit(jax.jacrev(whole))(weights)
    exact = jax.vmap(lambda w: jax.flatten_util.ravel_pytree(w)[0])(exact)

    @jax.jit
    def estimate(key):
        begin = lambda k: pes.begin(QUADRATIC, weights, k)
        mine = jax.vmap(begin)(jr.split(key, pairs))
        longest = jnp.full_like(mine.horizon, 2 * unroll)
        mine = eqx.tree_at(lambda p: p.horizon, mine, longest)
        gradients = []
        for i in range(2):
            keys = jr.split(jr.fold_in(key, i), pairs)
            advance = partial(pes.advance, QUADRATIC, weights)
            mine, terms, losses = jax.vmap(advance)(mine, keys)
            gradients.append(terms.mean(0))
        return jnp.stack(gradients), losses.mean()

    gradients, loss = estimate(jr.key(5))
    np.testing.assert_allclose(loss, whole(weights)[1], rtol=1e-3)
    for mine, wanted in zip(gradients, exact, strict=True):
        along = (mine @ wanted) / (wanted @ wanted)
        # The spread of the projection is sqrt(2 / pairs) for each of two noises.
        np.testing.assert_allclose(along, 1, atol=5 * np.sqrt(4 / pairs))
        cosine = (mine @ wanted) / jnp.sqrt((mine @ mine) * (wanted @ wanted))
        assert cosine > 0.85


def test_meta_training_finds_longer_steps(key):
    """Adam creeps at this rate; the trained network does not."""
    options = {"unroll": 10, "horizon": 40, "num_pairs": 8, "learning_rate": 0.02}
    weights = meta_train([QUADRATIC], steps=150, key=key, **options)
    params, data = quadratic_init(key)
    loss = lambda p: quadratic(p, data, key)
    trained = run(MetaOptimizer(weights=weights), 40, loss, params)[0]
    adam = run(optax.adam(1e-3), 40, loss, params)[0]
    assert trained[-1] < 0.8 * adam[-1]
    again = meta_train([QUADRATIC], steps=1, key=key, weights=weights, **options)
    assert 0 < jnp.abs(again.out_bias - weights.out_bias).max() <= 0.021


def test_runs_begin_anew_at_their_horizon(key):
    options = {"unroll": 10, "horizon": 40, "num_pairs": 4}
    pes = PES((QUADRATIC,), **options)
    state, step = pes.init(key), jax.jit(pes.step)
    assert (state.pairs[0].horizon >= 10).all() and (state.pairs[0].horizon <= 40).all()
    for _ in range(6):
        before, (state, loss) = state.pairs[0], step(state)
        fresh = before.step >= before.horizon
        wanted = jnp.where(fresh, 10, before.step + 10)
        np.testing.assert_array_equal(state.pairs[0].step, wanted)
        assert jnp.isfinite(loss)
        size = lambda pair: jnp.abs(pair.drift).max(1)
        assert (size(state.pairs[0])[fresh] < 0.02 * 6).all()
    bad = pes.progress(jnp.array([2.0, jnp.nan, 1e9, jnp.inf]), jnp.log(2.0))
    assert bad.tolist() == [0, 3, 3, 3]
    shares = jnp.linspace(0, 1, 2001)
    late = replace(pes, late=2).emphasis(shares)
    np.testing.assert_allclose(late.mean(), 1, atol=1e-3)
    assert late[0] == 0 and late[-1] == 3


BAD = {
    "rate": (lambda: MetaOptimizer(-1e-3), "`learning_rate` must be positive"),
    "nan_rate": (lambda: MetaOptimizer(float("nan")), "`learning_rate`.*got nan"),
    "shape": (
        lambda: MetaOptimizer(weights=replace(zero_weights(), bias=jnp.zeros(3))),
        r"`weights.bias` must have the shape \(12,\), got \(3,\)",
    ),
    "nan": (
        lambda: MetaOptimizer(weights=biased(factor=jnp.nan)),
        "`weights.out_bias` holds NaN",
    ),
    "complex": (
        lambda: MetaOptimizer().init({"a": jnp.ones(2, complex)}),
        r"got complex128 at `params\['a'\]`",
    ),
    "params": (
        lambda: MetaOptimizer().update(START, MetaOptimizer().init(START)),
        "`params` must not be None",
    ),
    "tasks": (lambda: PES(()), "`tasks` is empty"),
    "steps": (lambda: meta_train([QUADRATIC], steps=0, key=jr.key(0)), "`steps`"),
    "horizon": (lambda: PES((QUADRATIC,), horizon=3), "`horizon` must be .* least 20"),
    "sigma": (lambda: PES((QUADRATIC,), sigma=0.0), "`sigma` must be positive"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


def test_the_documented_trainer_takes_it():
    x = jnp.linspace(-1, 1, 40)[:, None]
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0), param_dtype=float)
    config = TrainingConfig(num_epochs=40, batch_size=40, progress=False)
    trainer = BasicTrainer(model, config, meta_optimizer=MetaOptimizer())
    _, history = trainer.train((x, 2 * x + 1))
    assert history["train_loss"][-1] < 0.5 * history["train_loss"][0]
