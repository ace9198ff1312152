import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.special

import opifex as opx


SHAPES = [(6,), (6, 3), (6, 4, 2)]


def data(shape, kind):
    rng = np.random.default_rng(0)
    # Rows 0 and 1 are answered exactly, and the target of row 1 vanishes.
    target, error = rng.normal(size=(2, *shape))
    if kind == "complex":
        target, error = (x + 1j * rng.normal(size=shape) for x in (target, error))
    error[:2], target[1] = 0, 0
    return target + 2 * error, target


def over_outputs(x):
    return x.reshape(len(x), -1).mean(1)


def plain_relative(p, t):
    rows = lambda x: np.linalg.norm(x.reshape(len(x), -1), axis=1)
    return rows(p - t) / np.where(rows(t) > 0, rows(t), 1)


LOSSES = {
    "mse": (opx.mse, lambda p, t: over_outputs(np.abs(p - t) ** 2)),
    "mae": (opx.mae, lambda p, t: over_outputs(np.abs(p - t))),
    "huber": (
        opx.huber(0.7),
        lambda p, t: over_outputs(scipy.special.huber(0.7, np.abs(p - t))),
    ),
    "relative_l2": (opx.relative_l2, plain_relative),
    "user": (
        lambda p, t: jnp.abs(p - t).reshape(p.shape[0], -1).max(1),
        lambda p, t: np.abs(p - t).reshape(len(p), -1).max(1),
    ),
}


def same(model, inputs, key):
    """The model is the prediction."""
    del inputs, key
    return model, model


def terms_of(problem, prediction, target, valid=None):
    batch = opx.Pairs(jnp.zeros(target.shape[:1]), target, valid)
    return problem.terms(prediction, batch, jr.key(0))


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_against_numpy(name, shape, kind):
    loss, plain = LOSSES[name]
    prediction, target = data(shape, kind)
    rows = plain(prediction, target)
    problem = opx.Supervised(loss, same, {"again": loss, "mse": opx.mse})
    args = problem, jnp.asarray(prediction), jnp.asarray(target)
    terms, aux = terms_of(*args)
    np.testing.assert_allclose(loss(*args[1:]), rows, rtol=1e-14)
    np.testing.assert_allclose(terms["data"], rows.mean(), rtol=1e-14)
    np.testing.assert_allclose(aux.metrics["again"], rows.mean(), rtol=1e-14)
    mean_square = (np.abs(prediction - target) ** 2).mean()
    np.testing.assert_allclose(aux.metrics["mse"], mean_square, rtol=1e-14)
    assert aux.counts == {} and terms["data"].dtype == jnp.float64
    valid = jnp.arange(6) % 2 == 0
    terms, aux = terms_of(*args, valid)
    np.testing.assert_allclose(terms["data"], rows[::2].mean(), rtol=1e-14)
    assert aux.counts == {"data": 3, "again": 3, "mse": 3}
    assert terms_of(*args, jnp.zeros(6, bool))[0]["data"] == 0


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradient_by_differences(name, kind):
    loss, _ = LOSSES[name]
    prediction, target = (jnp.asarray(x) for x in data((6, 3), kind))
    total = lambda p: jnp.sum(loss(p, target))
    grad = np.asarray(jax.grad(total)(prediction))
    # Finite also where the error, and the target, are zero.
    assert np.all(np.isfinite(grad))
    rng = np.random.default_rng(1)
    # As in JAX, the conjugate of the steepest ascent.
    for unit in (1.0, 1j) if kind == "complex" else (1.0,):
        along = 1e-6 * unit * rng.normal(size=(6, 3))
        along = jnp.asarray(along, prediction.dtype).at[:2].set(0)
        up, down = (total(prediction + h) for h in (along, -along))
        np.testing.assert_allclose(
            np.sum(grad * along).real, (up - down) / 2, rtol=1e-7
        )


@pytest.mark.parametrize(
    "problem, shapes, match",
    [
        (
            opx.Supervised(apply=same),
            [(6, 1), (6,)],
            r"\(6, 1\) and \(6,\)",
        ),
        (opx.Supervised(apply=same), [(5,), (6,)], r"`model`.*`targets`"),
        (
            opx.Supervised(lambda p, t: jnp.mean(p - t), same),
            [(6,), (6,)],
            r"`loss` must give one number a row.*\(6,\), got \(\)",
        ),
        (
            opx.Supervised(lambda p, t: p - t, same),
            [(6, 2), (6, 2)],
            r"`loss`.*\(6, 2\)",
        ),
        (
            opx.Supervised(apply=same, metrics={"worst": lambda p, t: jnp.max(p - t)}),
            [(6,), (6,)],
            "`worst` must give one number a row",
        ),
    ],
)
def test_supervised_mistakes(problem, shapes, match):
    with pytest.raises(ValueError, match=match):
        terms_of(problem, *(jnp.ones(s) for s in shapes))


def test_huber_needs_a_positive_delta():
    for delta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`delta`"):
            opx.huber(delta)


def test_pointwise_and_batched_apply(key):
    x = jr.normal(key, (6, 3))
    net = eqx.nn.MLP(3, 2, 4, 1, key=key)
    expected = np.stack([net(row) for row in x])
    target = jnp.zeros((6, 2))
    whole = lambda inputs: jax.vmap(net)(inputs)
    for apply, model in ((opx.pointwise, net), (opx.batched, whole)):
        terms, aux = opx.Supervised(apply=apply).terms(model, opx.Pairs(x, target), key)
        np.testing.assert_allclose(terms["data"], (expected**2).mean(), rtol=1e-12)
        assert aux.model is model


class Residuals(opx.AbstractResidualProblem):
    """Residuals that do not care for the model's answer but are scaled by it."""

    kind: type

    def residuals(self, model, batch):
        a, b = (x[:, 0].astype(self.kind) for x in (batch["a"], batch["b"]))
        turn = 1j if self.kind is complex else 1.0
        return {"a": model * a, "b/one": model * b, "b/two": model * b**2 * turn + 1}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", [float, complex])
def test_residual_terms_and_their_weights(kind, accumulate, key):
    a, b = np.linspace(0.1, 2, 8), np.linspace(-1, 1.5, 4)
    batch = {"a": jnp.asarray(a)[:, None], "b": jnp.asarray(b)[:, None]}
    turn = 1j if kind is complex else 1.0
    rows = {"a": 0.5 * a, "b/one": 0.5 * b, "b/two": 0.5 * b**2 * turn + 1}
    expected = {name: (np.abs(r) ** 2).mean() for name, r in rows.items()}
    problem, model = Residuals(kind), jnp.array(0.5, kind)
    terms, aux = problem.terms(model, batch, key)
    assert aux.counts == {"a": 8, "b/one": 4, "b/two": 4}
    assert {n: float(v) for n, v in terms.items()} == pytest.approx(expected, rel=1e-14)
    for given in ({}, {"b/two": 10.0}, {"a": 0.0, "b/one": jnp.array(2.5)}):
        weights = dict.fromkeys(expected, 1.0) | {n: float(w) for n, w in given.items()}
        recipe = opx.Recipe(
            problem,
            optax.adam(1e-3),
            opx.Fixed(batch),
            weighting=opx.Static(given),
            accumulate=accumulate,
        )
        info = eqx.filter_jit(recipe.step)(recipe.init(model, key=key))[1]
        total = sum(weights[n] * v for n, v in expected.items())
        np.testing.assert_allclose(info.loss, total, rtol=1e-14)
        assert {n: float(w) for n, w in info.weights.items()} == weights
        assert {n: float(v) for n, v in info.terms.items()} == pytest.approx(expected)


def test_weighting_names_its_terms(key):
    problem = Residuals(float)
    batch = {"a": jnp.ones((4, 1)), "b": jnp.ones((4, 1))}
    recipe = opx.Recipe(
        problem,
        optax.adam(1e-3),
        opx.Fixed(batch),
        weighting=opx.Static({"b/tow": 2.0}),
    )
    state = recipe.init(jnp.ones(()), key=key)
    message = "'b/tow' in `weighting`.*mean 'b/two'.*'a', 'b/one', 'b/two'"
    with pytest.raises(ValueError, match=message):
        recipe(state)


class Given(opx.AbstractProblem):
    make: object

    def terms(self, model, batch, key):
        return self.make(model)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda m: ({"a": m}, opx.Aux()), ValueError, r"real.*\(3,\) for 'a'"),
        (
            lambda m: ({"a": m[0].astype(complex)}, opx.Aux()),
            ValueError,
            "complex128.*'a'",
        ),
        (lambda m: ({"a": jnp.array(1)}, opx.Aux()), ValueError, "int64.*'a'"),
        (lambda m: ({"a": 1.0}, opx.Aux()), ValueError, "got 1.0 for 'a'"),
        (lambda m: ({}, opx.Aux()), TypeError, "dictionary of scalars, not empty"),
        (lambda m: (m[0], opx.Aux()), TypeError, r"dictionary.*got \(f64\[\], Aux"),
        (lambda m: {"a": m[0]}, TypeError, r"an `Aux`, got \{'a': f64\[\]\}"),
        (
            lambda m: ({"data": m[0]}, opx.Aux(counts={"date": jnp.array(1)})),
            ValueError,
            "'date' in `counts`.*mean 'data'",
        ),
    ],
)
def test_terms_that_are_none(make, error, match, accumulate, key):
    optim, batch = optax.adam(1e-3), jnp.zeros(2)
    state = opx.init(optim, opx.Fixed(batch), opx.NoRecovery(), jnp.ones(3), key=key)
    with pytest.raises(error, match=match):
        opx.train_step(Given(make), optim, state, batch, accumulate=accumulate)
