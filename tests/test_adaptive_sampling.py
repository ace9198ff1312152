"""Samplers that place points by the residual, and points that carry weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from scipy import optimize, stats

import opifex as opx
from opifex._problem.base import plain
from opifex._sampler.adaptive import draw
from opifex._sampler.density import choose, Density, floored, stratified
from opifex._sampler.importance import Importance
from opifex._sampler.misfit import misfit
from opifex._sampler.r3 import R3
from opifex._sampler.rard import RARD
from opifex._sampler.rarg import RARG

from .helpers import assert_same_bits, bits, DOMAINS


NUM_POINTS = {"interior": 16, "boundary": 2}
GROWTH = {"num_initial": {"interior": 6}, "num_new": {"interior": 4}}
MANY = {"interior": 64}
MAKE = {
    "rad": lambda **kw: opx.RAD(DOMAINS, NUM_POINTS, MANY, **kw),
    "rard": lambda **kw: RARD(DOMAINS, NUM_POINTS, MANY, **GROWTH, **kw),
    "rarg": lambda **kw: RARG(DOMAINS, NUM_POINTS, MANY, **GROWTH, **kw),
    "r3": lambda **kw: R3(DOMAINS, NUM_POINTS, ("interior",), **kw),
    "importance": lambda **kw: Importance(DOMAINS, NUM_POINTS, MANY, **kw),
}
STEP = jnp.zeros((), jnp.int32)
LINE = {"line": opx.Box([0.0], [1.0])}


class Known(opx.AbstractResidualProblem):
    """Residuals are functions of the point, scaled by the model, a number."""

    functions: dict

    def residuals(self, model, batch):
        at = lambda name: batch[name.split("/")[0]][:, 0]
        return {name: model * f(at(name)) for name, f in self.functions.items()}


def known(**functions):
    return Known({name.replace("_", "/"): f for name, f in functions.items()})


class Fit(opx.AbstractResidualProblem):
    """A polynomial that is to be a sine inside and to vanish at the ends."""

    def residuals(self, model, batch):
        value = lambda x: model[0] * x + model[1] * x**2
        x = batch["interior"][:, 0]
        return {
            "interior": value(x) - jnp.sin(x),
            "boundary": value(batch["boundary"][:, 0]),
        }


START = jnp.array([0.3, 0.2])
ONE, KEEP = jnp.array(1.0), known(line=lambda x: x**2 + 0.1)


@pytest.mark.parametrize("name", [*MAKE, "quasi"])
def test_contract(name, key):
    quasi = lambda: MAKE["rard"](candidates=opx.QuasiRandom)
    sampler = MAKE.get(name, quasi)()

    def run(key):
        keys = jr.split(key, 4)
        state = sampler.init(keys[0])
        new = sampler.resample(state, Fit(), START, keys[1])
        newer = sampler.resample(new, Fit(), START, keys[2])
        return (state, new, newer), sampler.batch(newer, keys[3], STEP)

    states, batch = result = eqx.filter_jit(run)(key)
    assert all(eqx.is_array(x) for x in jtu.tree_leaves(result))
    shapes = [eqx.filter_eval_shape(lambda x: x, x) for x in states]
    assert shapes[0] == shapes[1] == shapes[2]
    assert [int(state.chunks) for state in states] == [0, 1, 2]
    many = eqx.filter_jit(eqx.filter_vmap(run))(jnp.stack([key, jr.key(1)]))
    for a, b in zip(bits(many), bits(result), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-9, atol=1e-12)
    assert np.any(plain(many[1])["interior"][0] != plain(many[1])["interior"][1])
    points = plain(batch)
    assert {n: len(x) for n, x in points.items()} == NUM_POINTS
    # Inside the domain, and nothing piled on its edge.
    assert jnp.all(jnp.abs(points["interior"]) < 1) and jnp.all(points["boundary"] == 1)


@pytest.mark.parametrize("name", sorted(set(MAKE) - {"rarg"}))
def test_a_whole_run_is_traced_once_and_can_be_cut(name, key):
    traces = []

    class Counted(Fit):
        def residuals(self, model, batch):
            traces.append(batch["interior"].shape)
            return Fit.residuals(self, model, batch)

    recipe = opx.Recipe(Counted(), optax.adam(1e-3), MAKE[name](every=2), steps=3)
    state = recipe.init(START, key=key)
    part = opx.fit(recipe, state, num_chunks=7)
    before = len(traces)
    part = opx.fit(recipe, part, num_chunks=13)
    assert_same_bits(part, opx.fit(recipe, state, num_chunks=20))
    assert len(traces) == before
    assert int(part.sampler_state.chunks) == 20
    assert jnp.all(part.sampler_state.age["interior"] <= 20)


@pytest.mark.parametrize("name", MAKE)
def test_the_residual_is_evaluated_when_it_is_due(name, key):
    seen = []

    class Told(Fit):
        def residuals(self, model, batch):
            out = super().residuals(model, batch)
            jax.debug.callback(lambda r: seen.append(len(r)), out["interior"])
            return out

    sampler = MAKE[name](every=3)
    again = eqx.filter_jit(lambda s, k: sampler.resample(s, Told(), START, k))
    states = [sampler.init(key)]
    for i in range(7):
        states.append(again(states[-1], jr.key(i)))
    jax.effects_barrier()
    assert seen == 2 * [16 if name == "r3" else 64]
    points = [s.points["interior"] for s in states]
    changed = [bool(jnp.any(a != b)) for a, b in zip(points[1:], points, strict=False)]
    assert changed == [False, False, True, False, False, True, False]
    # Age is counted in chunks; after seven, the last new points have seen one.
    assert int(jnp.min(states[-1].age["interior"])) == 1
    assert int(jnp.max(states[2].age["interior"])) == 2


@pytest.mark.parametrize("least", [0.0, 1e-3, 0.02, 0.045])
def test_floor(least):
    # Against the water level found by bisection.
    p = np.sort(np.random.default_rng(0).exponential(size=20) ** 3)
    p = np.append(p[1:] / p[1:].sum(), 0.0)
    level = optimize.brentq(lambda s: np.maximum(least, s * p).sum() - 1, 0, 2)
    expected = np.maximum(least, level * p)
    found = np.asarray(jax.jit(lambda p: floored(p, least))(jnp.asarray(p)))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert found.min() >= least


def test_temperature_and_floor_of_a_density():
    r = jnp.array([0.0, -1.0, 3.0, jnp.nan, 0.5])
    size = np.array([0.0, 1.0, 3.0, 3.0, 0.5])
    for k, c, temperature in ((1, 1, 1), (2.0, 0.5, 3.0), (0.5, 0.0, 0.5)):
        density = Density(k, c, temperature)
        expected = (size**k / np.mean(size**k) + c) ** (1 / temperature)
        found = np.exp(density.log_probability(r))
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-14)
    flat = Density(1.0, 0.0, 1.0, 0.2).log_probability(r)
    np.testing.assert_allclose(np.exp(flat), 0.2)


def test_draws_follow_the_floored_density():
    # Coverage: candidates without residual come as often as their floor says.
    r = jnp.array([0.0, 0.0, 1.0, 2.0, 0.0, 5.0])
    logits = Density(1.0, 0.0, 1.0, 0.05).log_probability(r)
    one = jax.vmap(lambda key: choose(logits, 1, key)[0])
    counts = np.bincount(one(jr.split(jr.key(0), 20000)), minlength=6)
    expected = np.array([0.05, 0.05, 0.85 / 8, 1.7 / 8, 0.05, 4.25 / 8])
    assert stats.chisquare(counts, 20000 * expected).pvalue > 1e-3
    many = jax.vmap(lambda key: stratified(jnp.exp(logits), 7, key))
    drawn = np.asarray(many(jr.split(jr.key(1), 20000)))
    counts = np.stack([np.bincount(row, minlength=6) for row in drawn])
    error = counts.std(0) / np.sqrt(20000) + 1e-12
    assert np.all(np.abs(counts.mean(0) - 7 * expected) < 4 * error)
    # Stratified: no number is further off than this.
    assert np.all(np.abs(counts - 7 * expected[None]) < 2)


def test_points_follow_the_density_over_a_geometry(key):
    # Chi-square of what is placed against the density, on a disc.
    disc = opx.Disc([0.0, 0.0], 1.0)
    problem = known(disc=lambda x: jnp.where(x > 0, 3.0, 1.0))
    counts = {"disc": 2000}
    for candidates in (opx.Uniform, opx.QuasiRandom):
        rad = opx.RAD({"disc": disc}, counts, {"disc": 40000}, candidates=candidates)
        run = lambda s, k, rad=rad: rad.resample(s, problem, ONE, k)
        new = eqx.filter_jit(run)(eqx.filter_jit(rad.init)(key), jr.key(1))
        points = new.points["disc"]
        assert jnp.all(disc.contains(points)) and len(np.unique(points, axis=0)) == 2000
        # |r| / mean + 1 is 1.5 + 1 and 0.5 + 1.
        right = points[:, 0] > 0
        observed = [int(right.sum()), 2000 - int(right.sum())]
        assert stats.chisquare(observed, [1250, 750]).pvalue > 1e-3
        density = np.where(right, 2.5, 1.5) / 2
        np.testing.assert_allclose(new.density["disc"], density, rtol=0.02)


@pytest.mark.parametrize("batch_size", [1, 7, 8, 20, 21])
def test_residuals_in_blocks(batch_size, key):
    rows = []

    class Two(opx.AbstractResidualProblem):
        def residuals(self, model, batch):
            rows.append(batch["line"].shape[0])
            x = batch["line"][:, 0]
            other = batch["other"][:, 0]
            return {"line/one": model * x, "line/two": x - 2, "other": other}

    points = {"line": jr.normal(key, (20, 1)), "other": jnp.ones((3, 1))}
    x = np.asarray(points["line"][:, 0])
    expected = {
        "sum": np.hypot(2 * x, x - 2),
        "line/two": np.abs(x - 2),
        ("line/one", "line/two"): np.hypot(2 * x, x - 2),
        ("line/one", "other"): np.abs(2 * x),
        "other": np.hypot(2 * x, x - 2),
    }
    for equations, size in expected.items():
        look = lambda p, e=equations: misfit(Two(), 2.0, p, "line", e, batch_size)
        np.testing.assert_allclose(look(points), size, rtol=1e-14)
    np.testing.assert_allclose(jax.jit(look)(points), size, rtol=1e-14)
    assert max(rows) <= batch_size


def in_corner(x):
    return jnp.where(x > 0.9, 1.0 + x, 0.0)


def grow(kind, initial=5, new=3, size=12):
    counts = {"num_initial": {"line": initial}, "num_new": {"line": new}}
    return kind(LINE, {"line": size}, {"line": 200}, **counts)


@pytest.mark.parametrize("kind", [RARD, RARG])
def test_refinement_adds_where_the_residual_is(kind, key):
    sampler, problem = grow(kind), known(line=in_corner)
    states = [sampler.init(key)]
    again = jax.jit(lambda s, k: sampler.resample(s, problem, ONE, k))
    for i in range(4):
        states.append(again(states[-1], jr.key(i)))
    counts = [int(s.count["line"]) for s in states]
    assert counts == [5, 8, 11, 12, 12]
    for i, (old, new) in enumerate(zip(states, states[1:], strict=False)):
        a, b = counts[i : i + 2]
        np.testing.assert_array_equal(new.points["line"][:a], old.points["line"][:a])
        added = np.asarray(new.points["line"][a:b])
        assert np.all((added > 0.9) & (added <= 1)) and len(np.unique(added)) == b - a
        assert np.all(new.density["line"][a:b] > 1)
        if kind is RARG:
            pool = draw(sampler.growth.pool, jr.split(jr.key(i))[0])["line"][:, 0]
            largest = np.sort(pool)[::-1][: b - a]
            np.testing.assert_array_equal(added[:, 0], largest)
    np.testing.assert_array_equal(
        states[-1].age["line"], 5 * [4] + 3 * [3] + 3 * [2] + [1]
    )
    # The loss is the mean over the points that are there, whatever waits behind them.
    for state, count in ((states[1], 8), (states[-1], 12)):
        there = state.points["line"][:count, 0]
        for loss in (losses(sampler, state), losses(sampler, state, accumulate=4)):
            np.testing.assert_allclose(
                loss[0], np.mean(KEEP.functions["line"](there) ** 2)
            )
            np.testing.assert_allclose(loss[1], 2 * loss[0])


def losses(sampler, state, accumulate=1):
    """The loss of `KEEP`, which grows as the square of the model, and its gradient."""
    fixed = opx.Fixed({"line": sampler.batch(state, jr.key(0), STEP)["line"]})
    recipe = opx.Recipe(
        KEEP, optax.sgd(1.0), fixed, opx.NoRecovery(), accumulate=accumulate, steps=1
    )
    start = recipe.init(ONE, key=jr.key(0))
    end, infos = eqx.filter_jit(recipe)(start)
    return float(infos.loss[0]), float(start.model - end.model)


def test_r3_retains_what_exceeds_the_mean(key):
    domains = LINE | {"other": opx.Box([0.0], [1.0])}
    sampler = R3(domains, {"line": 100, "other": 10}, ("line",))
    problem = known(line=lambda x: x**3, other=lambda x: x)
    old = sampler.init(key)
    new = sampler.resample(old, problem, ONE, jr.key(1))
    x, y = old.points["line"][:, 0], new.points["line"][:, 0]
    stays = np.asarray(x**3 > jnp.mean(x**3))
    assert 10 < stays.sum() < 60
    np.testing.assert_array_equal(np.asarray(x == y), stays)
    np.testing.assert_array_equal(new.age["line"], stays.astype(int))
    assert stats.kstest(np.asarray(y)[~stays], "uniform").pvalue > 1e-3
    assert np.all(new.points["other"] != old.points["other"])
    # Equal residuals: none exceeds the mean, and all are released.
    even = sampler.resample(old, known(line=jnp.ones_like), ONE, jr.key(1))
    assert np.all(even.points["line"] != old.points["line"])


@pytest.mark.parametrize("fresh", [True, False])
def test_importance_is_unbiased(fresh, key):
    sampler = Importance(LINE, {"line": 5}, {"line": 60}, c=0.2, fresh=fresh)
    problem = known(line=lambda x: jnp.exp(-40 * x) + 0.01)
    start = sampler.init(key)
    state = sampler.resample(start, problem, ONE, jr.key(1))
    same = bool(jnp.all(state.points["line"] == start.points["line"]))
    assert same != fresh
    x = np.asarray(state.points["line"][:, 0])
    size = np.exp(-40 * x) + 0.01
    np.testing.assert_allclose(state.density["line"], (size / size.mean() + 0.2) / 1.2)

    # Another function than that which the points were placed by.
    other = known(line=lambda x: jnp.cos(3 * x) * jnp.exp(-20 * x))

    def loss(a, key):
        batch = sampler.batch(state, key, STEP)
        return other.terms(a, batch, key)[0]["line"]

    sample = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))
    values, slopes = sample(jnp.array(1.5), jr.split(jr.key(2), 20000))
    exact = np.mean((np.cos(3 * x) * np.exp(-20 * x)) ** 2)
    for found, mean in ((values, 1.5**2 * exact), (slopes, 2 * 1.5 * exact)):
        error = np.std(found) / np.sqrt(len(found))
        assert error < 0.02 * mean
        assert abs(np.mean(found) - mean) < 4 * error
    # What is drawn scatters less than a plain draw does.
    every = (1.5 * np.cos(3 * x) * np.exp(-20 * x)) ** 2
    assert np.std(values) < np.std(every) / np.sqrt(5) / 2


class Misnamed(opx.AbstractResidualProblem):
    def residuals(self, model, batch):
        return {"lines": batch["line"][:, 0]}


def resampled(sampler, problem=KEEP):
    return sampler.resample(sampler.init(jr.key(0)), problem, ONE, jr.key(0))


def rad(num=4, candidates=9, **kwargs):
    return opx.RAD(LINE, {"line": num}, {"line": candidates}, **kwargs)


ROOM = {"num_initial": {"line": 2}, "num_new": {"line": 2}}


def rard(kind=RARD, **kwargs):
    return kind(LINE, {"line": 4}, {"line": 9}, **(ROOM | kwargs))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: rad(candidates=0), r"`num_candidates\['line'\]`.*at least 4, got 0"),
        (
            lambda: rad(min_probability=0.2),
            "`min_probability` = 0.2 .* 9 .*at most 0.111",
        ),
        (lambda: rad(min_probability=-0.1), "`min_probability`.*-0.1"),
        (lambda: rad(min_probability=float("nan")), "`min_probability`.*nan"),
        (lambda: rad(temperature=0.0), "`temperature`.*0.0"),
        (lambda: rad(c=float("inf")), "`k` and `c`.*c=inf"),
        (lambda: rad(every=0), "`every`.*0"),
        (lambda: rad(batch_size=0), "`batch_size`.*0"),
        (lambda: rad(residual=()), r"`residual`.*\(\)"),
        (lambda: resampled(rad(residual="lime")), "'lime' in `residual`.*mean 'line'"),
        (
            lambda: resampled(rad(), Misnamed()),
            "'line' in `num_cand.*'lines'",
        ),
        (
            lambda: resampled(rad(), known(line=lambda x: x[1:])),
            "gave 8 .*'line'.* 9 points",
        ),
        (lambda: resampled(rad(), opx.Supervised()), "`RAD`.*got Supervised"),
        (lambda: resampled(rard(), opx.Supervised()), "`RARD`.*got Supervised"),
        (
            lambda: rard(num_initial={"line": 5}),
            r"`num_initial\['line'\]`.*most 4, got 5",
        ),
        (lambda: rard(num_new={"line": 10}), r"`num_new\['line'\]`.*most 9, got 10"),
        (lambda: rard(num_new={}), r"`num_new\['line'\]`.*None"),
        (lambda: rard(RARG, num_new={"lime": 1}), "'lime' in `num_new`.*mean 'line'"),
        (lambda: rard(RARG, num_initial={"line": 0}), r"`num_initial\['line'\]`.*0"),
        (lambda: rard(min_probability=0.2), "`min_probability` = 0.2"),
        (lambda: R3(LINE, {"line": 4}, ("lime",)), "'lime' in `names`.*mean 'line'"),
        (lambda: R3(LINE, {"line": 4}, ()), r"`names`.*\(\)"),
        (
            lambda: Importance(LINE, {"line": 4}, {"line": 9}, c=0.0),
            "`c` and `min_probability`.*no bound",
        ),
        (
            lambda: Importance(LINE, {"line": 4}, {"line": 3}),
            "`num_pool.*at least 4, got 3",
        ),
    ],
)
def test_bad_input(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
