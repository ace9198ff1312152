from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._pack import is_small, is_small_vector, pack

from .helpers import assert_same_bits, bits, OPTIMIZERS, RECOVERIES


X = jr.normal(jr.key(7), (16, 3))
Y = jnp.sin(X[:, 0]) + 0.3
W = jnp.array([0.3, -0.2, 0.5])


def answer(model, x, key=None):
    del key
    return jnp.tanh(x @ model["w"]) + model["b"], model


def answer_linear(model, x, key):
    return model * jnp.ones_like(x[:, 0]), model


def line():
    return {"w": W, "b": jnp.zeros(()), "act": jnp.tanh}


def params_of(model):
    return {name: model[name] for name in ("w", "b")}


def squares(params, x=X, y=Y):
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2)


@opx.SumOfSquares
def misfit(params):
    scale = X.shape[0] ** -0.5
    return scale * (jnp.tanh(X @ params["w"]) + params["b"] - Y)


def fixed(x, y):
    return opx.Fixed(opx.Pairs(x, y))


ALL = fixed(X, Y)


def recipe_of(optim=None, x=X, y=Y, **kwargs):
    optim = optax.adam(1e-2) if optim is None else optim
    options = {"recovery": opx.NoRecovery(), "steps": 10} | kwargs
    options.setdefault("sampler", ALL if x is X and y is Y else fixed(x, y))
    return opx.Recipe(opx.Supervised(apply=answer), optim, **options)


def one_step(recipe, state, batch=None):
    """A proposed step without recovery: what `train_step` alone does."""
    batch = recipe.sampler.points if batch is None else batch
    return eqx.filter_jit(opx.train_step)(
        recipe.problem,
        recipe.optim,
        state,
        batch,
        weighting=recipe.weighting,
        trainable=recipe.trainable,
        precision=recipe.precision,
        accumulate=recipe.accumulate,
        remat=recipe.remat,
    )


def ascent(recipe, model, key, batch=None):
    """The gradient as `optax.sgd(1.0)` shows it, and the info of the step."""
    recipe = eqx.tree_at(lambda r: r.optim, recipe, optax.sgd(1.0))
    state = recipe.init(model, key=key)
    proposed, info = one_step(recipe, state, batch)
    arrays = lambda state: eqx.filter(state.model, eqx.is_inexact_array)
    return jtu.tree_map(jnp.subtract, arrays(state), arrays(proposed)), info


def assert_close(one, other, rtol=1e-12, atol=1e-14):
    for a, b in zip(bits(one), bits(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def differ(one, other):
    return any(np.any(a != b) for a, b in zip(bits(one), bits(other), strict=True))


@pytest.mark.parametrize(
    "name, accumulate",
    # The phases are those of Adam and SSBroyden.
    [
        ("sgd_schedule", 1),
        ("lbfgs", 4),
        ("levenberg_marquardt", 1),
        ("nncg", 1),
        ("phases", 1),
    ],
)
def test_a_step_is_an_optax_step(name, accumulate, key):
    recipe = recipe_of(OPTIMIZERS[name](), accumulate=accumulate)
    optim = optax.with_extra_args_support(recipe.optim)

    @jax.jit
    def plain(params, opt_state):
        value, grad = jax.value_and_grad(squares)(params)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, opt_state = optim.update(
                grad, opt_state, params, value=value, grad=grad, value_fn=misfit
            )
        return optax.apply_updates(params, updates), opt_state, value, grad

    params, state = params_of(line()), recipe.init(line(), key=key)
    opt_state = optim.init(params)
    for i in range(7):
        params, opt_state, value, grad = plain(params, opt_state)
        state, info = one_step(recipe, state)
        assert_close((info.loss, info.terms), (value, {"data": value}), 1e-9)
        norms = [np.linalg.norm(grad["b"]), np.linalg.norm(grad["w"])]
        assert_close(info.leaf_norms, jnp.array(norms), 1e-7)
        assert_close(info.grad_norm, jnp.array(np.hypot(*norms)), 1e-7)
        assert info.weights == {"data": 1} and info.result == opx.RESULTS.successful
        assert state.step == i + 1
    assert_close(params_of(state.model), params, 1e-8)
    # A damping follows the differences of losses that hardly differ any more.
    rtol = 1e-2 if name == "levenberg_marquardt" else 1e-5
    assert_close(state.opt_state, opt_state, rtol, 1e-9)


def test_scale_and_clip_of_the_state(key):
    recipe = recipe_of(optax.sgd(1.0))
    state = recipe.init(line(), key=key)
    grad = jax.grad(squares)(params_of(line()))
    norm = np.hypot(np.linalg.norm(grad["w"]), grad["b"])
    for limit in (norm / 3, norm * 3, np.inf):
        scaled = replace(state, step_scale=jnp.array(0.25), clip_norm=jnp.array(limit))
        proposed, info = one_step(recipe, scaled)
        factor = 0.25 * min(1, limit / norm)
        expected = {n: p - factor * grad[n] for n, p in params_of(line()).items()}
        assert_close(params_of(proposed.model), expected)
        assert_close(info.grad_norm, jnp.array(norm))


@pytest.mark.parametrize(
    "function, result",
    [
        (lambda x: jnp.log(-1.0 - x**2), "nonfinite_loss"),
        (lambda x: jnp.sqrt(x - 1.0), "nonfinite_gradient"),
        (lambda x: 0.0 * x, "successful"),
    ],
)
def test_verdict(function, result, key):
    class Problem(opx.AbstractProblem):
        def terms(self, model, batch, key):
            return {"f": function(model)}, opx.Aux()

    recipe = recipe_of(optax.sgd(0.1))
    state = opx.init(
        recipe.optim, recipe.sampler, recipe.recovery, jnp.ones(()), key=key
    )
    _, info = opx.train_step(Problem(), recipe.optim, state, jnp.zeros(1))
    assert info.result == getattr(opx.RESULTS, result)


class Several(opx.AbstractResidualProblem):
    def residuals(self, model, batch):
        a, b = (answer(model, batch[name])[0] for name in ("a", "b"))
        return {"a": a - 1.0, "b/one": b, "b/two": b**2 - 0.3}


def several_sets():
    batch = {"a": X, "b": 0.5 * X[:4] + 1.0}

    def loss(params):
        a, b = (answer(params, batch[name])[0] for name in ("a", "b"))
        return {
            "a": jnp.mean((a - 1) ** 2),
            "b/one": jnp.mean(b**2),
            "b/two": jnp.mean((b**2 - 0.3) ** 2),
        }

    return Several(), batch, loss, {}


def masked_rows():
    # The last batch of an epoch: 3 rows of 8 count, and so in the quarters 2, 1, 0, 0.
    sampler = opx.Minibatch(X[:11], Y[:11], 8)
    batch = sampler.batch(sampler.init(jr.key(1)), jr.key(2), jnp.array(1, jnp.int32))
    x, y = batch.inputs[:3], batch.targets[:3]
    problem = opx.Supervised(apply=answer, metrics={"mae": opx.mae})
    metrics = {"mae": jnp.mean(jnp.abs(answer(line(), x)[0] - y))}
    return problem, batch, lambda params: {"data": squares(params, x, y)}, metrics


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("make", [several_sets, masked_rows])
def test_microbatches_add_up(make, accumulate, key):
    problem, batch, terms, metrics = make()
    weights = dict.fromkeys(terms(line()), 1.0) | {list(terms(line()))[-1]: 3.0}
    loss = lambda params: sum(weights[n] * v for n, v in terms(params).items())
    recipe = opx.Recipe(
        problem,
        optax.sgd(1.0),
        opx.Fixed(batch),
        weighting=opx.Static(weights),
        accumulate=accumulate,
    )
    grads, info = ascent(recipe, line(), key)
    assert_close(params_of(grads), jax.grad(loss)(params_of(line())))
    assert_close((info.loss, info.terms), (loss(line()), terms(line())))
    assert_close(info.metrics, metrics)
    assert {n: float(w) for n, w in info.weights.items()} == weights


def test_every_microbatch_has_a_key_of_its_own(key):
    class Noise(opx.AbstractProblem):
        def terms(self, model, batch, key):
            return {"noise": model * jr.normal(key)}, opx.Aux()

    recipe = opx.Recipe(Noise(), optax.sgd(1.0), opx.Fixed(jnp.zeros(4)), accumulate=4)
    state = recipe.init(jnp.ones(()), key=key)
    noise = [jr.normal(jr.fold_in(state.key_for("loss"), i)) for i in range(4)]
    assert_close(one_step(recipe, state)[1].loss, jnp.mean(jnp.stack(noise)))


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: recipe_of(accumulate=3), ValueError, r"`accumulate`.*3.*inputs.*16"),
        (lambda: recipe_of(accumulate=0), ValueError, "`accumulate`.*0"),
        (lambda: recipe_of(accumulate=True), ValueError, "`accumulate`.*True"),
        (lambda: recipe_of(steps=0), ValueError, "`steps`.*0"),
        (lambda: recipe_of(optim=optax.adam), TypeError, "optim"),
        (lambda: recipe_of(sampler="uniform"), TypeError, "sampler.*'uniform'"),
        (lambda: recipe_of(recovery=None), TypeError, "recovery"),
    ],
)
def test_bad_choices(call, error, match, key):
    with pytest.raises(error, match=match):
        recipe = call()
        one_step(recipe, recipe.init(line(), key=key))


def test_bad_beginnings(key):
    with pytest.raises(ValueError, match="`model`.*`trainable`"):
        opx.init(optax.adam(1e-3), ALL, opx.NoRecovery(), {"n": jnp.arange(3)}, key=key)
    with pytest.raises(TypeError, match="key"):
        recipe_of().init(line(), key=jr.PRNGKey(0))
    with pytest.raises(ValueError, match="'losses'.*'loss'"):
        recipe_of().init(line(), key=key).key_for("losses")


@pytest.mark.parametrize("recovery", ["none", "backtrack"])
def test_frozen_parameters(recovery, key):
    only_w = lambda model: {"w": True, "b": False, "act": False}
    # Weight decay would move what is merely given a gradient of zero.
    recipe = recipe_of(
        optax.adamw(1e-2, weight_decay=0.1),
        trainable=only_w,
        recovery=RECOVERIES[recovery](),
    )
    model = line() | {"b": jnp.array(0.1)}
    state = recipe.init(model, key=key)
    assert {x.shape for x in jtu.tree_leaves(state.opt_state)} == {(), (3,)}
    assert state.opt_state[0].mu["b"] is None
    after, infos = eqx.filter_jit(recipe)(state)
    assert after.model["b"] == model["b"] and jnp.all(after.model["w"] != model["w"])
    assert np.all(infos.leaf_norms[:, 0] == 0) and np.all(infos.leaf_norms[:, 1] > 0)


class Normed(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        one, two = jr.split(key)
        self.first = eqx.nn.Linear(3, 4, key=one)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="ema")
        self.last = eqx.nn.Linear(4, "scalar", key=two)

    def __call__(self, x, buffers):
        x, buffers = self.norm(self.first(x), buffers)
        return self.last(jnp.tanh(x)), buffers


def apply_normed(model, inputs, key=None):
    del key
    net, buffers = model
    rows = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    outputs, buffers = rows(inputs, buffers)
    return outputs, (net, buffers)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_buffers_are_carried_not_trained(accumulate, key):
    optim = optax.adam(1e-2)
    model = eqx.nn.make_with_state(Normed)(key)
    recipe = opx.Recipe(
        opx.Supervised(apply=apply_normed),
        optim,
        opx.Fixed(opx.Pairs(X, Y)),
        accumulate=accumulate,
    )
    state = recipe.init(model, key=key)
    moments = eqx.filter(state.opt_state[0].mu, eqx.is_array)
    trained = eqx.filter(model[0], eqx.is_inexact_array)
    assert [m.shape for m in jtu.tree_leaves(moments)] == [
        p.shape for p in jtu.tree_leaves(trained)
    ]

    @eqx.filter_jit
    def plain(net, buffers, opt_state):
        def loss(net, x, y):
            prediction, (_, new) = apply_normed((net, buffers), x)
            return jnp.mean((prediction - y) ** 2), new

        grads, gradient = [], eqx.filter_grad(loss, has_aux=True)
        for x, y in zip(*(jnp.split(z, accumulate) for z in (X, Y)), strict=True):
            grad, buffers = gradient(net, x, y)
            grads.append(grad)
        mean = jtu.tree_map(lambda *g: sum(g) / accumulate, *grads)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optim.update(mean, opt_state)
        return eqx.apply_updates(net, updates), buffers, opt_state

    (net, buffers), opt_state = model, optim.init(trained)
    for _ in range(4):
        net, buffers, opt_state = plain(net, buffers, opt_state)
        state, _ = one_step(recipe, state)
    assert_close(state.model, (net, buffers), 1e-10)
    assert differ(buffers, model[1])


@pytest.mark.parametrize(
    "compute, tolerance, accumulate", [("float32", 1e-6, 1), (jnp.bfloat16, 0.03, 2)]
)
def test_lower_precision(compute, tolerance, accumulate, key):
    seen = set()

    def apply(model, x, key):
        seen.update({model["w"].dtype, x.dtype})
        return answer(model, x)

    problem = opx.Supervised(apply=apply)
    full = recipe_of(accumulate=accumulate)
    exact, _ = ascent(full, line(), key)
    for output, scale in ((None, 1.0), ("float64", 1.0), ("float64", 1024.0)):
        low = replace(
            full, problem=problem, precision=opx.Precision(compute, output, scale)
        )
        grads, info = ascent(low, line(), key)
        assert info.loss.dtype == jnp.dtype(compute if output is None else output)
        assert grads["w"].dtype == jnp.float64
        assert_close(grads, exact, tolerance, tolerance)
        assert differ(grads, exact)
        assert_close(info.loss.astype(float), squares(line()), tolerance)
        state = low.init(line(), key=key)
        after = eqx.filter_eval_shape(low, state)[0]
        dtypes = lambda tree: [getattr(x, "dtype", x) for x in jtu.tree_leaves(tree)]
        assert dtypes(after) == dtypes(state)
    assert jnp.dtype(compute) in seen


def test_loss_scale(key):
    same = [recipe_of(precision=opx.Precision(loss_scale=s)) for s in (1.0, 2.0**15)]
    results = [ascent(recipe, line(), key) for recipe in same]
    assert_close(*results, 1e-14)
    # What float16 rounds to zero on the way back: 2^-12 squared, times a weight.
    tiny = opx.Supervised(lambda y, _: (2.0**-12 * y) ** 2, answer_linear)
    for scale, expected in ((1.0, 0.0), (2.0**12, 2.0**-23)):
        half = opx.Precision("float16", "float64", scale)
        recipe = replace(recipe_of(x=X[:1], y=Y[:1], precision=half), problem=tiny)
        grads, _ = ascent(recipe, jnp.array(0.25), key)
        assert grads == 0.25 * expected
    with pytest.raises(ValueError, match="`compute`.*int32"):
        opx.Precision("int32")
    with pytest.raises(ValueError, match="`loss_scale`.*0"):
        opx.Precision(loss_scale=0.0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_remat_changes_nothing_but_the_program(accumulate, key):
    recipe = recipe_of(accumulate=accumulate)
    again = replace(recipe, remat=True)
    assert_close(ascent(again, line(), key), ascent(recipe, line(), key))
    state = recipe.init(line(), key=key)
    # The activations are computed once more, for the backward pass.
    tanhs = lambda r: str(eqx.filter_make_jaxpr(r.step)(state)[0]).count("tanh")
    assert tanhs(again) == tanhs(recipe) + 1


def test_complex_parameters(key):
    x = jax.lax.complex(X, jnp.cos(X))
    y = jax.lax.complex(Y, Y**2)
    model = {"w": jax.lax.complex(W, W[::-1]), "b": jnp.array(0.1 - 0.2j)}

    def split_loss(real, imag):
        w, b = (jax.lax.complex(real[n], imag[n]) for n in ("w", "b"))
        error = jnp.tanh(x @ w) + b - y
        return jnp.mean(error.real**2 + error.imag**2)

    parts = [jtu.tree_map(part, model) for part in (jnp.real, jnp.imag)]
    real, imag = jax.grad(split_loss, argnums=(0, 1))(*parts)
    recipe = recipe_of(x=x, y=y)
    for accumulate in (1, 2):
        recipe = replace(recipe, accumulate=accumulate)
        grads, info = ascent(recipe, model, key)
        assert_close(grads, jtu.tree_map(jax.lax.complex, real, imag))
        assert_close(info.loss, split_loss(*parts))
        leaves = [np.ravel(x) for x in (*real.values(), *imag.values())]
        assert_close(info.grad_norm, jnp.array(np.linalg.norm(np.concatenate(leaves))))
    _, infos = eqx.filter_jit(replace(recipe, steps=100))(recipe.init(model, key=key))
    assert infos.loss[-1] < 0.5 * infos.loss[0]


@pytest.mark.parametrize(
    "optim, recovery",
    [
        *((name, "backtrack_clips") for name in OPTIMIZERS),
        *(("adam", name) for name in RECOVERIES if name != "backtrack_clips"),
    ],
)
def test_a_chunk_keeps_every_type(optim, recovery, key):
    # A weak type that comes in or goes out would trace the second chunk anew.
    recipe = recipe_of(OPTIMIZERS[optim](), recovery=RECOVERIES[recovery]())
    state = recipe.init(line(), key=key)
    jaxpr = eqx.filter_make_jaxpr(lambda state: recipe(state)[0])(state)[0]
    types = [
        [(v.aval, getattr(v.aval, "weak_type", False)) for v in variables]
        for variables in (jaxpr.jaxpr.invars, jaxpr.jaxpr.outvars)
    ]
    assert types[0] == types[1] and not any(weak for _, weak in types[0])


def test_one_trace_serves_every_chunk(key):
    traces = []

    def apply(model, x, key):
        traces.append(x)
        return answer(model, x)

    recipe = replace(
        recipe_of(recovery=opx.Backtrack()), problem=opx.Supervised(apply=apply)
    )
    states = [recipe.init(line(), key=jr.key(i)) for i in range(2)]
    traces.clear()
    chunk = eqx.filter_jit(recipe)
    for state in states:
        for _ in range(2):
            state, _ = chunk(state)
    assert len(traces) == 1


def test_many_at_once_are_each_alone(key):
    recipe = recipe_of(recovery=opx.Backtrack())

    def start(key):
        return recipe.init(line() | {"w": jr.normal(key, (3,))}, key=key)

    keys = jr.split(key, 3)
    states = eqx.filter_vmap(start)(keys)
    states, infos = eqx.filter_jit(eqx.filter_vmap(recipe))(states)
    alone = eqx.filter_jit(recipe)
    for i in range(3):
        state, info = alone(start(keys[i]))
        member = lambda tree, i=i: jtu.tree_map(
            lambda x: x[i] if eqx.is_array(x) else x, tree
        )
        assert_close(params_of(member(states).model), params_of(state.model), 1e-10)
        assert_close(member(infos).loss, info.loss, 1e-10)


@pytest.mark.parametrize(
    "optim, rate, recovery",
    [(optax.sgd, 0.05, opx.NoRecovery()), (optax.adam, 0.003, opx.Backtrack())],
)
def test_gradient_through_training(optim, rate, recovery, key):
    def final_loss(rate):
        recipe = recipe_of(optim(rate), recovery=recovery, steps=50)
        state, _ = recipe(recipe.init(line(), key=key))
        return squares(state.model)

    grad = jax.jit(jax.grad(final_loss))(rate)
    value, step = jax.jit(final_loss), 1e-4 * rate
    slope = (value(rate + step) - value(rate - step)) / (2 * step)
    np.testing.assert_allclose(grad, slope, rtol=1e-6)


def mixed_carry(key):
    return {
        "small": jnp.linspace(0.0, 1.0, 5),
        "matrix": jnp.eye(3),
        "big": jnp.linspace(-1.0, 1.0, 200),
        "half": jnp.ones(4, jnp.float32),
        "waves": jnp.array([1 + 1j, 2 - 1j, 0.5j]),
        "count": jnp.zeros((), jnp.int32),
        "flags": jnp.array([True, False, True]),
        "none": None,
        "key": key,
    }


def mixed_step(c):
    noise = jr.normal(jr.fold_in(c["key"], c["count"]), (5,))
    small = jnp.sin(c["small"]) + 0.1 * noise + jnp.mean(c["big"])
    waves = 0.9 * c["waves"] * jnp.exp(jax.lax.complex(0 * small, small)[:3])
    new = c | {
        "small": small,
        "matrix": c["matrix"] @ jnp.cos(c["matrix"]) / 3 + jnp.abs(jnp.sum(waves)),
        "big": 0.5 * c["big"] + jnp.mean(c["matrix"]),
        "half": c["half"] * 0.5,
        "waves": waves,
        "count": c["count"] + 1,
        "flags": jnp.roll(c["flags"], 1),
    }
    out = {name: new[name] for name in ("flags", "waves", "matrix", "key", "none")}
    return new, out | {"sum": jnp.sum(small), "old": c["big"], "number": 2.0}


def test_filter_scan_is_a_scan(key):
    def packed(small):
        # A function in the carry is what `jax.lax.scan` does not take.
        step = lambda c: (lambda new, out: (new | {"fn": c["fn"]}, out))(*mixed_step(c))
        init = mixed_carry(key) | {"small": small, "fn": jnp.tanh}
        final, outs = opx.filter_scan(step, init, length=6)
        assert final.pop("fn") is jnp.tanh
        return final, outs

    def plain(small):
        init = mixed_carry(key) | {"small": small}
        return jax.lax.scan(lambda c, _: mixed_step(c), init, length=6)

    def total(run):
        def value(small):
            final, outs = run(small)
            return jnp.sum(final["matrix"]) + jnp.sum(outs["sum"] ** 2)

        return value

    small = mixed_carry(key)["small"]
    batch = jnp.stack([small, 2 * small, small**2])
    for one, other in (
        (packed(small), plain(small)),
        (jax.vmap(packed)(batch), jax.vmap(plain)(batch)),
        (jax.grad(total(packed))(small), jax.grad(total(plain))(small)),
    ):
        assert jtu.tree_structure(one) == jtu.tree_structure(other)
        for a, b in zip(bits(one), bits(other), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("select", [is_small, is_small_vector])
def test_unpack_undoes_pack(select, key):
    odd = jnp.array([jnp.nan, -0.0, jnp.inf, 5e-324])
    tree = mixed_carry(key) | {"odd": odd, "empty": jnp.zeros((0, 3)), "edge": odd[:2]}
    packed, unpack = pack(tree, select)
    assert len(packed[0]) < len(jtu.tree_leaves(tree))
    assert_same_bits(unpack(packed), tree)
    # As a scan stacks them.
    stacked = unpack(jtu.tree_map(lambda x: jnp.stack([x, x]), packed))
    assert_same_bits(stacked, jtu.tree_map(lambda x: jnp.stack([x, x]), tree))
