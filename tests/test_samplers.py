import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from scipy import stats
from scipy.stats import qmc

import opifex as opx
from opifex._problem.base import plain
from opifex._sampler.density import choose, rad_logits

from .helpers import assert_same_bits, bits, DOMAINS, mlp, Poisson, SAMPLERS


# How often points are new: at every step, every chunk, or never.
RENEWAL = {
    "fixed": None,
    "latin_hypercube": None,
    "uniform": "step",
    "importance": "step",
}
SEQUENCES = {"sobol": opx.sobol, "halton": opx.halton, "latin": opx.latin_hypercube}
STEP = jnp.array(3, jnp.int32)


def differ(one, other):
    return all(np.any(a != b) for a, b in zip(bits(one), bits(other), strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name, key):
    sampler, problem, model = SAMPLERS[name](), Poisson(), mlp(jr.key(5))

    def run(key):
        keys = jr.split(key, 4)
        state = sampler.init(keys[0])
        new = sampler.resample(state, problem, model, keys[1])
        batches = [
            sampler.batch(state, keys[2], STEP),
            sampler.batch(state, keys[3], STEP + 1),
            sampler.batch(new, keys[2], STEP),
        ]
        batches = [plain(batch) for batch in batches]
        return (state, new), batches

    states, batches = eager = run(key)
    assert all(eqx.is_array(x) for x in jtu.tree_leaves(eager))
    types = [eqx.filter_eval_shape(lambda x: x, x) for x in (*states, *batches)]
    assert types[0] == types[1] and types[2] == types[3] == types[4]
    assert_same_bits(run(key), eager)
    keys = jr.split(key, 3)
    many = eqx.filter_jit(eqx.filter_vmap(run))(keys)
    for i in range(3):
        for a, b in zip(bits(many), bits(run(keys[i])), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-14)
    renewal = RENEWAL.get(name, "chunk")
    assert differ(batches[0]["interior"], batches[1]["interior"]) == (renewal == "step")
    assert differ(batches[0]["interior"], batches[2]["interior"]) == (
        renewal == "chunk"
    )
    other = run(jr.key(1))[1][0]["interior"]
    assert differ(batches[0]["interior"], other) == (renewal is not None)
    if name == "fixed":
        assert_same_bits(batches[0], sampler.points)
        return
    for batch in batches:
        for set_name, domain in DOMAINS.items():
            points = batch[set_name]
            assert points.shape == (sampler.num_points[set_name], 1)
            assert jnp.all((points >= domain.lower[0]) & (points <= domain.upper[0]))


def box(dtype=None):
    # The last coordinate is held fixed.
    return opx.Box([-1.0, 0.0, 2.0], [1.0, 3.0, 2.0], dtype)


def to_unit(points):
    return (np.asarray(points)[:, :2] - [-1.0, 0.0]) / [2.0, 3.0]


def test_uniform_is_uniform(key):
    sampler = opx.Uniform({"one": box(), "two": box()}, {"one": 4096, "two": 4096})
    batch = sampler.batch(sampler.init(key), key, STEP)
    for points in batch.values():
        unit = to_unit(points)
        assert np.all(np.asarray(points)[:, 2] == 2.0)
        assert all(stats.kstest(x, "uniform").pvalue > 1e-3 for x in unit.T)
        np.testing.assert_allclose(unit.mean(0), 0.5, atol=4 / np.sqrt(12 * 4096))
        np.testing.assert_allclose(unit.var(0), 1 / 12, rtol=0.06)
    # No set repeats another, nor one coordinate another.
    columns = np.concatenate([to_unit(x) for x in batch.values()], axis=1)
    off = np.corrcoef(columns.T) - np.eye(4)
    assert np.abs(off).max() < 4 / np.sqrt(4096)


@pytest.mark.parametrize("name", SEQUENCES)
def test_quasi_random_is_more_even(name, key):
    counts, domains = {"one": 200, "two": 200}, {"one": box(), "two": box()}
    sequence = SEQUENCES[name]
    sampler = opx.QuasiRandom(domains, counts, sequence=sequence, seed=3)
    uniform = opx.Uniform(domains, counts).batch(None, key, STEP)
    first = sampler.init(key)
    again = sampler.resample(first, Poisson(), None, jr.key(1))
    random = qmc.discrepancy(to_unit(uniform["one"]))
    for points in (*first.values(), *again.values()):
        assert qmc.discrepancy(to_unit(points)) < random / 2
    for set_name in domains:
        # The same set up to a shift modulo one, and not the same set.
        moved = to_unit(again[set_name]) - to_unit(first[set_name])
        turns = np.exp(2j * np.pi * moved)
        np.testing.assert_allclose(turns, turns[:1].repeat(200, 0), atol=1e-12)
        assert np.all(np.abs(turns[0] - 1) > 1e-3)
    assert differ(first["one"], first["two"])
    still = opx.QuasiRandom(domains, counts, sequence=sequence, seed=3, shift=False)
    points = still.init(key)
    assert_same_bits(still.resample(points, Poisson(), None, jr.key(1)), points)
    np.testing.assert_allclose(to_unit(points["one"]), sequence(200, 3, 3)[:, :2])
    other = opx.QuasiRandom(domains, counts, sequence=sequence, seed=9, shift=False)
    assert differ(other.init(key)["one"][:, :2], points["one"][:, :2])


def test_the_shift_is_uniform():
    sequence = lambda n, dim, seed: np.zeros((n, dim))
    sampler = opx.QuasiRandom({"one": box()}, {"one": 1}, sequence=sequence)
    shifts = jax.vmap(lambda k: sampler.init(k)["one"][0])(jr.split(jr.key(0), 2000))
    for x in to_unit(shifts).T:
        assert stats.kstest(x, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("kind", [opx.Uniform, opx.QuasiRandom])
def test_points_have_the_type_of_the_domain(kind, key):
    sampler = kind({"one": box(jnp.float32)}, {"one": 100})
    points = np.asarray(sampler.batch(sampler.init(key), key, STEP)["one"])
    assert points.dtype == np.float32
    assert np.all((points >= [-1, 0, 2]) & (points <= [1, 3, 2]))


@pytest.mark.parametrize("c", [0.0, 1.0])
@pytest.mark.parametrize("k", [0.5, 1.0, 2.0])
def test_rad_density(k, c):
    size = np.array([0.1, 2.0, 0.5, 3.0, 1.0])
    sign = np.array([1, -1, 1, -1, -1])
    logits = lambda r: np.asarray(rad_logits(jnp.asarray(r), k=k, c=c))
    expected = np.log(size**k / np.mean(size**k) + c)
    for scale in (1.0, 1e-180, 1e180):
        np.testing.assert_allclose(logits(scale * sign * size), expected, atol=1e-12)
    worst = np.append(size, 3.0)
    for bad in (np.nan, np.inf, -np.inf):
        np.testing.assert_allclose(logits(np.append(size, bad)), logits(worst))
    for even in (np.zeros(4), np.full(4, np.nan), np.ones(4)):
        np.testing.assert_allclose(logits(even), np.log(1 + c), atol=1e-15)


@pytest.mark.parametrize("num", [1, 2, 3])
def test_draws_without_replacement(num):
    weights = np.array([0.5, 1.0, 2.0, 0.25, 1.25])
    p, total = weights / weights.sum(), 20000
    draw = jax.vmap(lambda key: choose(jnp.log(weights), num, key))
    drawn = np.asarray(jax.jit(draw)(jr.split(jr.key(0), total)))
    orders = list(itertools.permutations(range(5), num))
    probability = []
    for order in orders:
        left, product = 1.0, 1.0
        for i in order:
            product, left = product * p[i] / left, left - p[i]
        probability.append(product)
    counts = [np.sum(np.all(drawn == order, axis=1)) for order in orders]
    # None is outside `orders`: no index is drawn twice.
    assert sum(counts) == total
    assert stats.chisquare(counts, total * np.array(probability)).pvalue > 1e-3


class Bumps(opx.AbstractResidualProblem):
    """Residuals of known shape: the model is the place of a bump."""

    def residuals(self, model, batch):
        x = batch["inside"][:, 0]
        bump = lambda at: jnp.exp(-0.5 * ((x - at) / 0.1) ** 2)
        edge = batch["edge"][:, 0]
        return {"inside/one": bump(model), "inside/two": -2 * bump(1.7), "edge": edge}


def test_rad_follows_the_residuals(key):
    domains = {"inside": opx.Box([0.0], [2.0]), "edge": opx.Box([0.0], [1.0])}
    counts, model = {"inside": 400, "edge": 50}, jnp.array(0.5)
    draw = lambda k, c: opx.RAD(domains, counts, {"inside": 20000}, k=k, c=c)

    def points(sampler):
        state = sampler.init(key)
        new = sampler.resample(state, Bumps(), model, jr.key(1))
        new, old = new.points, state.points
        assert differ(new, old)
        assert stats.kstest(np.asarray(new["edge"][:, 0]), "uniform").pvalue > 1e-3
        inside = np.asarray(new["inside"][:, 0])
        assert len(np.unique(inside)) == 400
        return inside

    grid = np.linspace(0, 2, 4001)
    one, two = (np.exp(-50 * (grid - at) ** 2) for at in (0.5, 1.7))
    size = np.hypot(one, 2 * two)
    for k, c in ((1.0, 0.0), (2.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        density = size**k / np.mean(size**k) + c
        distribution = np.cumsum(density) / np.sum(density)
        cdf = lambda x, y=distribution: np.interp(x, grid, y)
        assert stats.kstest(points(draw(k, c)), cdf).pvalue > 1e-3
    # Where every residual is lost, each point is as bad as any.
    lost = draw(1.0, 0.0)
    lost = lost.resample(lost.init(key), Bumps(), jnp.nan * model, jr.key(1))
    lost = lost.points["inside"]
    assert stats.kstest(np.asarray(lost[:, 0]) / 2, "uniform").pvalue > 1e-3


def test_rad_needs_residuals_of_its_sets(key):
    domains = {"inside": opx.Box([0.0], [2.0]), "edge": opx.Box([0.0], [1.0])}
    counts = {"inside": 4, "edge": 4}
    sampler = opx.RAD(domains, counts, {"inside": 8})
    with pytest.raises(TypeError, match="`problem`.*Supervised.*`Uniform`"):
        sampler.resample(sampler.init(key), opx.Supervised(), jnp.array(0.5), key)

    class Misnamed(Bumps):
        def residuals(self, model, batch):
            return {"insides": batch["inside"][:, 0]}

    with pytest.raises(ValueError, match="'inside' in `num_candidates`.*'insides'"):
        sampler.resample(sampler.init(key), Misnamed(), jnp.array(0.5), key)


def rows_of(sampler, state, steps):
    batch = lambda step: sampler.batch(state, jr.key(0), step)
    return jax.jit(jax.vmap(batch))(jnp.asarray(steps, jnp.int32))


def indexed(rows, batch_size, **kwargs):
    """A data set whose rows say which they are."""
    index = jnp.arange(rows, dtype=float)
    inputs = {"one": index, "two": jnp.stack([index, -index], axis=1)}
    return opx.Minibatch(inputs, 10 * index, batch_size, **kwargs)


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 16, 50, 64, 65, 1000])
def test_every_row_once_an_epoch(rows, key):
    for batch_size in {1, 3, min(16, rows), rows} - {1 if rows > 100 else 0}:
        sampler = indexed(rows, batch_size)
        steps = sampler.steps_per_epoch
        assert steps == -(-rows // sampler.batch_size) and sampler.num_rows == rows
        state = sampler.init(key)
        batch = rows_of(sampler, state, np.arange(3 * steps))
        assert batch.targets.shape == (3 * steps, sampler.batch_size)
        np.testing.assert_array_equal(batch.targets, 10 * batch.inputs["one"])
        np.testing.assert_array_equal(batch.inputs["two"][..., 0], batch.inputs["one"])
        np.testing.assert_array_equal(batch.inputs["two"][..., 1], -batch.inputs["one"])
        assert (batch.valid is None) == (rows % sampler.batch_size == 0)
        index = np.asarray(batch.inputs["one"]).astype(int).reshape(3, -1)
        # Also what fills up a batch is a real row.
        assert index.min() >= 0 and index.max() < rows
        valid = np.ones_like(index, bool)
        if batch.valid is not None:
            valid = np.asarray(batch.valid).reshape(3, -1)
        orders = [i[v] for i, v in zip(index, valid, strict=True)]
        for order in orders:
            np.testing.assert_array_equal(np.sort(order), np.arange(rows))
        if rows >= 16:
            other = rows_of(sampler, sampler.init(jr.key(1)), np.arange(steps))
            first = np.asarray(other.inputs["one"]).reshape(-1)[:rows]
            for a, b in itertools.combinations([*orders, first], 2):
                assert np.any(a != b)


def fair(places, size):
    counts = np.bincount(np.ravel(places), minlength=size)
    return stats.chisquare(counts).pvalue


@pytest.mark.parametrize("rows", [2, 3, 5, 7, 16, 50, 65, 100])
def test_every_order_is_as_likely(rows):
    # Over keys, and over the epochs of one key.
    sampler, total = indexed(rows, rows), 20000
    epoch = jnp.array(7, jnp.int32)
    one = lambda key: sampler.batch(sampler.init(key), key, epoch).inputs["one"]
    over_keys = jax.jit(jax.vmap(one))(jr.split(jr.key(0), total))
    over_epochs = rows_of(sampler, sampler.init(jr.key(0)), np.arange(total))
    for orders in (over_keys, over_epochs.inputs["one"]):
        orders = np.asarray(orders).astype(int)
        # Where single rows land, and where one lands as seen from another.
        singles = [fair(orders[:, i], rows) for i in range(rows)]
        turns = [(orders[:, i] - orders[:, 0]) % rows - 1 for i in range(1, rows)]
        pairs = [fair(x, rows - 1) for x in turns] if rows > 2 else []
        following = rows * orders[1:, 0] + orders[:-1, 0]
        p_values = [*singles, *pairs, fair(following[::2], rows**2)]
        assert min(p_values) * len(p_values) > 1e-2
        if rows <= 5:
            numbers = orders @ rows ** np.arange(rows)
            counts = np.unique(numbers, return_counts=True)[1]
            assert len(counts) == np.prod(np.arange(1, rows + 1))
            assert stats.chisquare(counts).pvalue > 1e-3


def test_no_shuffle_and_full_batch(key):
    in_order = indexed(7, 3, shuffle=False)
    batch = rows_of(in_order, in_order.init(key), np.arange(6))
    index = [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    np.testing.assert_array_equal(batch.inputs["one"], np.array(2 * index))
    np.testing.assert_array_equal(batch.valid[2::3].sum(1), 1)
    for batch_size in (7, 8, 100):
        full = indexed(7, batch_size)
        batch = rows_of(full, full.init(key), np.arange(4))
        assert full.batch_size == 7 and full.steps_per_epoch == 1
        assert batch.valid is None
        np.testing.assert_array_equal(np.sort(batch.inputs["one"]), [np.arange(7)] * 4)


def test_masked_mean_over_an_epoch(key):
    x = jr.normal(key, (50, 3))
    sampler, problem = opx.Minibatch(x, jnp.sin(x[:, 0]), 16), opx.Supervised()
    state, model = sampler.init(key), lambda row: row[1]
    total = count = 0.0
    for step in range(4):
        batch = sampler.batch(state, key, jnp.array(step, jnp.int32))
        terms, aux = problem.terms(model, batch, key)
        valid = float(aux.counts["data"])
        total, count = total + valid * terms["data"], count + valid
    assert count == 50
    mean = np.mean((np.asarray(x[:, 1]) - np.sin(x[:, 0])) ** 2)
    np.testing.assert_allclose(total / count, mean, rtol=1e-14)


ONES, LINE = jnp.ones((4, 1)), {"line": opx.Box([0.0], [1.0])}


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: opx.Minibatch(ONES[:3], ONES, 2), r"`inputs` and `targets`.*rows"),
        (lambda: opx.Minibatch({"a": ONES, "b": ONES[1:]}, ONES, 2), r"inputs\['b'\]"),
        (lambda: opx.Minibatch(jnp.ones(()), ONES, 2), r"`inputs`.*rows"),
        (lambda: opx.Minibatch({}, ONES, 2), "`inputs` holds no array"),
        (lambda: opx.Minibatch(ONES[:0], ONES[:0], 2), "`inputs` is empty"),
        (lambda: opx.Minibatch(ONES.at[2].set(jnp.nan), ONES, 2), "`inputs`.*row 2"),
        (lambda: opx.Minibatch(ONES, ONES.at[1].set(jnp.inf), 2), "`targets`.*row 1"),
        (lambda: opx.Minibatch(ONES, jnp.arange(4), 2), "`targets`.*int64.*astype"),
        (lambda: opx.Minibatch(ONES, ONES, 0), "`batch_size`.*0"),
        (lambda: opx.Minibatch(ONES, ONES, -3), "`batch_size`.*-3"),
        (lambda: opx.Minibatch(ONES, ONES, True), "`batch_size`.*True"),
        (lambda: opx.Fixed({"a": ONES[:0]}), r"`points\['a'\]` is empty"),
        (lambda: opx.Fixed({"a": ONES * jnp.nan}), r"`points\['a'\]`.*NaN.*row 0"),
        (lambda: opx.Box([1.0, 0.0], [0.0, 1.0]), "`lower`.*`upper`"),
        (lambda: opx.Box([0.0], [float("nan")]), "`upper`.*NaN"),
        (lambda: opx.Box([float("-inf")], [0.0]), "`lower`.*infinity"),
        (lambda: opx.Box([], []), "`lower` is empty"),
        (lambda: opx.Box([[0.0]], [[1.0]]), "lower"),
        (lambda: opx.Box(0.0, 1.0), "lower"),
        (lambda: opx.Box([0.0], [1.0, 2.0]), "upper"),
        (
            lambda: opx.QuasiRandom(LINE, {"line": 3}, seed=-1),
            "`seed`.*-1",
        ),
        (lambda: opx.RAD(LINE, {"line": 3}, {"lime": 4}), "num_cand.*mean 'line'"),
        (
            lambda: opx.RAD(LINE, {"line": 3}, {"line": 2}),
            r"candidates\['line'\].*3.*2",
        ),
        (lambda: opx.RAD(LINE, {"line": 3}, {"line": 4}, k=-1.0), "`k`.*-1.0"),
        (lambda: opx.RAD(LINE, {"line": 3}, {"line": 4}, c=-1.0), "`c`.*c=-1.0"),
        (lambda: opx.RAD(LINE, {"line": 3}, {"line": 4}, k=float("nan")), "`k`.*nan"),
    ],
)
def test_bad_arguments(call, match):
    # A few are caught by the types before the message that users see.
    with pytest.raises((ValueError, TypeError), match=match):
        call()


@pytest.mark.parametrize(
    "domains, num_points, match",
    [
        ({}, {}, "`domains` is empty"),
        (LINE, {}, r"`num_points\['line'\]`.*None"),
        (LINE, {"line": 0}, r"`num_points\['line'\]`.*0"),
        (LINE, {"line": True}, r"`num_points\['line'\]`.*True"),
        (LINE, {"lines": 3}, "'lines' in `num_points`.*mean 'line'"),
    ],
)
@pytest.mark.parametrize("kind", ["uniform", "quasi", "rad"])
def test_bad_sets(kind, domains, num_points, match):
    make = {
        "uniform": opx.Uniform,
        "quasi": opx.QuasiRandom,
        "rad": lambda *args: opx.RAD(*args, {}),
    }
    with pytest.raises(ValueError, match=match):
        make[kind](domains, num_points)
