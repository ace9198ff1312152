"""Each weighting against its published formula, with numbers worked out by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._weighting.annealing import LearningRateAnnealing
from opifex._weighting.augmented_lagrangian import AugmentedLagrangian
from opifex._weighting.base import Needs, Observed, renew
from opifex._weighting.causal import Causal
from opifex._weighting.grad_norm import GradNorm
from opifex._weighting.grad_norm_balance import GradNormBalance
from opifex._weighting.ntk import NTK
from opifex._weighting.product import Product
from opifex._weighting.relobralo import ReLoBRaLo
from opifex._weighting.residual_attention import ResidualAttention
from opifex._weighting.scheduled import Scheduled
from opifex._weighting.self_adaptive import SelfAdaptive
from opifex._weighting.soft_adapt import SoftAdapt

from .helpers import assert_same_bits


def vectors(values):
    return {name: jnp.asarray(v) for name, v in values.items()}


def shapes(values):
    return {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in values.items()}


def not_asked():
    raise AssertionError("asked for what it did not declare")


def see(terms=None, *, gradients=None, traces=None, residuals=None, batch=None, step=0):
    """What a step would show, made up."""
    residuals = vectors(residuals or {})
    if terms is None:
        terms = {n: np.mean(np.abs(r) ** 2) for n, r in residuals.items()}
    is_list = lambda x: isinstance(x, list)
    arrays = lambda x: jtu.tree_map(jnp.array, x, is_leaf=is_list)
    give = lambda x: not_asked if x is None else lambda *_: arrays(x)
    return Observed(
        step=jnp.array(step, jnp.int32),
        terms={n: jnp.array(float(v)) for n, v in terms.items()},
        residuals=residuals,
        batch=vectors(batch or {}),
        key=jr.key(step),
        term_gradients=give(gradients),
        point_gradients=give(traces),
    )


def weights_of(weighting, state, names):
    terms = {name: jnp.ones((), jnp.float32) for name in names}
    weights = weighting.weights(state, terms)
    assert all(w.dtype == jnp.float32 and w.shape == () for w in weights.values())
    return [weights[name] for name in names]


def begin(weighting, names):
    return weighting.init(shapes({name: jnp.ones(()) for name in names}))


def assert_close(one, other, rtol=1e-6, atol=0.0):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=atol)


def test_scheduled():
    half = lambda step: 0.5**step
    weighting = Scheduled({"b": optax.linear_schedule(1.0, 5.0, 4), "c": half, "d": 7})
    state = begin(weighting, "abcd")
    for step in range(6):
        expected = [1, 1 + min(step, 4), 0.5**step, 7]
        assert_close(weights_of(weighting, state, "abcd"), expected)
        state = renew(weighting, state, see(dict.fromkeys("abcd", 1.0), step=step))


# Norms 5, 1 and 0; their sum is 6.
GRADIENTS = {
    "a": {"w": [[3.0, 0.0]], "b": -4.0},
    "b": {"w": [[0.0, 0.6]], "b": 0.8j},
    "c": {"w": [[0.0, 0.0]], "b": 0.0},
}


def test_grad_norm_balance():
    weighting = GradNormBalance(decay=0.9, every=1)
    state = begin(weighting, "abc")
    seen = see(dict.fromkeys("abc", 1.0), gradients=GRADIENTS)
    for a, b in ((1.02, 1.5), (0.918 + 0.12, 1.35 + 0.6)):
        state = weighting.update(state, seen)
        # 6/5 and 6/1; nothing is known of c.
        assert_close(weights_of(weighting, state, "abc"), [a, b, 1.0])
    bounded = GradNormBalance(decay=0.5, max_weight=4)
    state = bounded.update(begin(bounded, "abc"), seen)
    assert_close(weights_of(bounded, state, "abc"), [1.1, 2.5, 1.0])
    # With the weights themselves, all weighted gradients have one norm.
    exact = GradNormBalance(decay=0)
    a, b, _ = weights_of(exact, exact.update(begin(exact, "abc"), seen), "abc")
    assert_close([5 * a, b], [6.0, 6.0])


def test_learning_rate_annealing():
    weighting = LearningRateAnnealing("r", decay=0.9)
    gradients = {
        "r": {"w": [[-8.0, 2.0]], "b": [1.0]},
        # Mean of absolute values 2/3; the mean itself is 1/3.
        "i": {"w": [[0.5, -0.5]], "b": [1.0]},
        "z": {"w": [[0.0, 0.0]], "b": [0.0]},
    }
    state = begin(weighting, "riz")
    seen = see(dict.fromkeys("riz", 1.0), gradients=gradients)
    state = weighting.update(state, seen)
    assert_close(weights_of(weighting, state, "riz"), [1.0, 0.9 + 0.1 * 12, 1.0])
    state = weighting.update(state, seen)
    assert_close(weights_of(weighting, state, "riz"), [1.0, 0.9 * 2.1 + 1.2, 1.0])


def test_grad_norm():
    weighting = GradNorm(alpha=1, optim=optax.sgd(0.1))
    gradients = lambda a, b: {"a": {"w": [0.6 * a, 0.8 * a]}, "b": {"w": [0.0, b]}}
    state = begin(weighting, "ab")
    # G = (5, 1), both targets 3: slopes (5, -1), weights (0.5, 1.1) scaled to add to 2.
    first = see({"a": 2.0, "b": 4.0}, gradients=gradients(5.0, 1.0))
    state = weighting.update(state, first)
    assert_close(weights_of(weighting, state, "ab"), [0.625, 1.375])
    # Fallen to (1/2, 1), so r = (2/3, 4/3); G = (2.5, 2.75), targets (1.75, 3.5):
    # slopes (4, -2), weights (0.225, 1.575).
    second = see({"a": 1.0, "b": 4.0}, gradients=gradients(4.0, 2.0), step=1)
    state = weighting.update(state, second)
    assert_close(weights_of(weighting, state, "ab"), [0.25, 1.75])
    # A step too long would make a weight negative.
    far = GradNorm(alpha=0, optim=optax.sgd(1.0), min_weight=0.5)
    state = far.update(begin(far, "ab"), first)
    assert_close(weights_of(far, state, "ab"), [2 * 0.5 / 2.5, 2 * 2.0 / 2.5])


def test_ntk():
    traces = {"a": 6.0, "b": 2.0, "c": 0.0}
    for decay, expected in ((0, [8 / 6, 4.0, 1.0]), (0.5, [7 / 6, 2.5, 1.0])):
        weighting = NTK(decay=decay)
        seen = see(dict.fromkeys("abc", 1.0), traces=traces)
        state = weighting.update(begin(weighting, "abc"), seen)
        assert_close(weights_of(weighting, state, "abc"), expected)


@pytest.mark.parametrize("lookback", [0, 1])
def test_relobralo(lookback):
    alpha, temperature, w = 0.75, 0.5, np.ones(2)
    weighting = ReLoBRaLo(alpha, lookback, temperature)
    state = begin(weighting, "ab")
    losses = np.array([[2.0, 4.0], [1.0, 3.0], [1.5, 1.0], [0.0, 0.5]])

    def balance(now, then):
        power = np.exp(now / (temperature * then))
        return 2 * power / power.sum()

    for i, now in enumerate(losses):
        last = losses[max(i - 1, 0)]
        past = w if lookback else balance(now, losses[0])
        w = alpha * past + (1 - alpha) * balance(now, last)
        seen = see(dict(zip("ab", now, strict=True)), step=i)
        state = weighting.update(state, seen)
        assert_close(weights_of(weighting, state, "ab"), w)
    assert abs(w[0] - w[1]) > 1e-3


def test_relobralo_looks_back_at_random():
    weighting = ReLoBRaLo(alpha=1, lookback=0.7)
    state = weighting.update(begin(weighting, "ab"), see({"a": 1.0, "b": 1.0}))
    seen = see({"a": 0.5, "b": 1.0}, step=1)
    update = lambda key: weighting.update(state, seen._replace(key=key)).weights["a"]
    a = np.asarray(jax.vmap(update)(jr.split(jr.key(3), 2000)))
    kept, back = np.isclose(a, 1.0), np.isclose(a, 2 / (1 + np.exp(5.0)))
    assert np.all(kept | back)
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.21 / 2000)


@pytest.mark.parametrize("loss_weighted", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_soft_adapt(normalized, loss_weighted):
    weighting = SoftAdapt(0.3, normalized, loss_weighted, every=2)
    state = begin(weighting, "ab")
    assert_close(weights_of(weighting, state, "ab"), [0.5, 0.5])
    state = weighting.update(state, see({"a": 10.0, "b": 4.0}))
    assert_close(weights_of(weighting, state, "ab"), [0.5, 0.5])
    # Rates a step (-3, 1), normalized (-3/4, 1/4); mean losses 7 and 5.
    state = weighting.update(state, see({"a": 4.0, "b": 6.0}, step=2))
    rate = np.array([-0.75, 0.25] if normalized else [-3.0, 1.0])
    power = np.exp(0.3 * rate) * (np.array([7.0, 5.0]) if loss_weighted else 1)
    assert_close(weights_of(weighting, state, "ab"), power / power.sum())


TIMES = np.array([0.9, 0.1, 0.6, 0.3, 0.15, 0.7])
SIZES = np.array([3.0, 1.0, 2.0, 0.5, 2.0, 1.0])  # of the residuals


def test_causal():
    # Chunks: 0 has residuals 1 and 2, 1 has 0.5, 2 has 2 and 1, 3 has 3.
    # Their mean squares are 2.5, 0.25, 2.5 and 9.
    w = np.exp(-0.2 * np.array([0.0, 2.5, 2.75, 5.25]))
    chunk = np.array([3, 0, 2, 1, 0, 2])
    weighting = Causal(("in/eq",), 1, (0.0, 1.0), num_chunks=4, eps=0.2)
    state = begin(weighting, ["in/eq", "b"])
    points = np.stack([np.zeros(6), TIMES], 1)
    order = np.array([4, 2, 0, 5, 1, 3])
    for p in (np.arange(6), order):
        batch = {"in": jnp.asarray(points[p]), "b": jnp.zeros((1, 2))}
        residuals = {"in/eq": jnp.asarray(1j * SIZES[p]), "b": jnp.ones(1)}
        found = weighting.at_points(state, residuals, batch)
        assert_close(found.weights["in/eq"], w[chunk][p])
        parts = found.means(residuals)
        assert_close(parts["in/eq"], np.mean(w[chunk] * SIZES**2))
        assert_close(parts["b"], 1.0)
    state = weighting.update(state, see(residuals=residuals, batch=batch))
    assert_close(weighting.metrics(state)["min_weight/in/eq"], w[-1])
    # As many points a chunk: the loss of equation (13), the mean over the chunks.
    even = Causal(("in",), 0, (0, 2), num_chunks=2, eps=0.2)
    residuals = {"in": jnp.array([1.0, 2.0, 3.0, 4.0])}
    batch = {"in": jnp.array([[1.5], [0.5], [-9.0], [9.0]])}
    part = even.at_points(state, residuals, batch).means(residuals)["in"]
    assert_close(part, (6.5 + np.exp(-0.2 * 6.5) * 8.5) / 2)


def test_causal_shares_and_grows():
    weighting = Causal(("in/u", "in/v"), -1, (0, 1), 3, eps=(0.1, 10.0), threshold=0.9)
    state = begin(weighting, ["in/u", "in/v"])
    # The chunk in the middle is empty.
    batch = {"in": jnp.array([[0.9], [0.1], [0.2]])}
    for scale, eps, grows in ((2.0, 0.1, 0), (0.1, 0.1, 1), (0.1, 10.0, 1)):
        u, v = scale * np.array([1.0, 2.0, 1.0]), scale * np.array([0.0, 1.0, 3.0])
        residuals = {"in/u": jnp.asarray(u), "in/v": jnp.asarray(v)}
        late = np.exp(-eps * scale**2 * (2.5 + 5.0))
        found = weighting.at_points(state, residuals, batch).weights
        for name in residuals:
            assert_close(found[name], [late, 1, 1])
        state = weighting.update(state, see(residuals=residuals, batch=batch))
        assert state.level == grows
        assert_close(state.min_weight, late)


@pytest.mark.parametrize("mask", [jnp.square, jax.nn.sigmoid])
def test_self_adaptive(mask):
    r = {"a": np.array([1.0, -2.0, 0.0]), "b": np.array([3.0 + 4j])}
    weighting = SelfAdaptive((), mask, initial=0.5, optim=optax.sgd(0.1))
    state = weighting.init(shapes(vectors(r)))
    lambdas = {name: np.full(x.size, 0.5) for name, x in r.items()}
    for step in range(3):
        parts = weighting.at_points(state, vectors(r), {}).means(vectors(r))
        for name, x in lambdas.items():
            sigmoid = 1 / (1 + np.exp(-x))
            m = x**2 if mask is jnp.square else sigmoid
            assert_close(parts[name], np.mean(m * np.abs(r[name]) ** 2))
            slope = 2 * x if mask is jnp.square else sigmoid * (1 - sigmoid)
            # Ascent on the mean over the points.
            lambdas[name] = x + 0.1 * slope * np.abs(r[name]) ** 2 / x.size
        state = weighting.update(state, see(residuals=r, step=step))
        for name, x in lambdas.items():
            assert_close(state.lambdas[name], x)


def test_residual_attention():
    weighting = ResidualAttention(("a",), gamma=0.9, eta=0.2, initial=0)
    r = {"a": np.array([1.0, -4.0, 0.0]), "b": np.array([7.0])}
    state, x = weighting.init(shapes(vectors(r))), np.zeros(3)
    for step in range(200):
        x = 0.9 * x + 0.2 * np.array([0.25, 1.0, 0.0])
        found = weighting.at_points(state, vectors(r), {})
        if step in (0, 1, 199):
            assert_close(found.weights["a"], x**2)
            parts = found.means(vectors(r))
            assert_close(parts["a"], np.mean((x * r["a"]) ** 2))
            assert_close(parts["b"], 49.0)
        state = weighting.update(state, see(residuals=r, step=step))
    # The bound that the paper proves.
    assert_close(jnp.max(state["a"]), 0.2 / (1 - 0.9))


@pytest.mark.parametrize("pointwise", [True, False])
def test_augmented_lagrangian(pointwise):
    options = {"mu": 2.0, "beta": 3.0, "max_mu": 10.0, "pointwise": pointwise}
    weighting = AugmentedLagrangian(("c",), **options)
    r = {"a": np.array([3.0]), "c": np.array([1.0 + 1j, -2.0])}
    state = weighting.init(shapes(vectors(r)))
    mu, multiplier = 2.0, np.zeros(2, complex)
    for step in (0, 10, 20, 30):
        parts = weighting.at_points(state, vectors(r), {}).means(vectors(r))
        linear = np.real(np.conj(multiplier) * r["c"])
        assert_close(parts["c"], np.mean(mu * np.abs(r["c"]) ** 2 + linear))
        assert_close(parts["a"], 9.0)
        assert_close(weighting.metrics(state)["mu/c"], mu)
        if step > 0:
            multiplier = multiplier + 2 * mu * (r["c"] if pointwise else r["c"].mean())
            mu = min(3 * mu, 10.0)
        state = weighting.update(state, see(residuals=r, step=step))
        found = jnp.broadcast_to(state.multipliers["c"], 2)
        assert_close(found, multiplier)


class Tug(opx.AbstractResidualProblem):
    """(x - 3)^2 under the constraint x = 1, where the multiplier is 4."""

    def residuals(self, model, batch):
        return {"cost": model[None] - 3, "constraint": model[None] - 1}


def test_augmented_lagrangian_solves_a_constrained_problem(key):
    batch = {"cost": jnp.zeros((1, 1)), "constraint": jnp.zeros((1, 1))}
    weighting = AugmentedLagrangian(("constraint",), beta=1, every=20)
    recipe = opx.Recipe(
        Tug(), optax.sgd(0.2), opx.Fixed(batch), weighting=weighting, steps=500
    )
    state, infos = eqx.filter_jit(recipe)(recipe.init(jnp.zeros(()), key=key))
    assert_close(infos.terms["cost"][19], 1.0, 1e-3)  # the penalty alone: x = 2
    assert_close(state.model, 1.0, 1e-6)
    assert_close(state.weighting_state.multipliers["constraint"], [4.0], 1e-6)


def test_product(key):
    causal = Causal(("a",), 0, (0, 1), num_chunks=2, eps=1.0)
    lagrangian = AugmentedLagrangian(("a",), mu=3.0)
    static = opx.Static({"a": 2.0}), opx.Static({"a": 5.0, "b": 7.0})
    weighting = Product(static[0], causal, static[1], lagrangian)
    assert weighting.needs == {Needs.RESIDUALS, Needs.FIXED_POINTS}
    r = vectors({"a": np.array([1.0, 2.0]), "b": np.array([1.0])})
    batch = vectors({"a": np.array([[0.2], [0.8]]), "b": np.array([[0.0]])})
    state = weighting.init(shapes(r))
    ones = jnp.array([1.0, 1.0])
    state = eqx.tree_at(lambda s: s[3].multipliers["a"], state, 4 * ones)
    assert_close(weights_of(weighting, state, "ab"), [10.0, 7.0])
    parts = weighting.at_points(state, r, batch).means(r)
    density = [3 * 1.0 + 4 * 1, 3 * np.exp(-1.0) * 4 + 4 * 2]
    assert_close(parts["a"], np.mean(density))
    assert_close(parts["b"], 1.0)
    assert set(weighting.metrics(state)) == {"min_weight/a", "mu/a"}
    # Parts of which some are due.
    both = Product(GradNormBalance(decay=0, every=2), SoftAdapt(1, every=3))
    state, counts = begin(both, "ab"), []

    @jax.jit
    def after(state, step):
        a = 1.0 + step.astype(float)
        gradients = {"a": {"w": a[None]}, "b": {"w": jnp.array([6.0])}}
        seen = see({"a": 1.0, "b": 1.0})._replace(step=step)
        return renew(both, state, seen._replace(term_gradients=lambda: gradients))

    for step in range(8):
        state = after(state, jnp.array(step, jnp.int32))
        counts.append(int(state[1].count))
    assert counts == [1, 1, 1, 2, 2, 2, 3, 3]
    # The gradient of a was 7 at step 6, and 8 at step 7, when it was not asked for.
    assert_close(weights_of(both.parts[0], state[0], "ab"), [13 / 7, 13 / 6])


def test_what_is_not_finite_changes_nothing():
    weighting = SelfAdaptive(optim=optax.sgd(0.1))
    state = weighting.init(shapes(vectors({"a": np.ones(2)})))
    bad = see(residuals={"a": np.array([1.0, np.nan])}, step=1)
    assert_same_bits(renew(weighting, state, bad), state)
    terms = {"a": 1.0, "b": np.inf}
    for weighting in (ReLoBRaLo(), SoftAdapt(every=1)):
        state = weighting.update(begin(weighting, "ab"), see({"a": 1.0, "b": 1.0}))
        assert_same_bits(renew(weighting, state, see(terms, step=1)), state)
