"""Models, and the states of their optimizers, carried between two sizes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import opifex as opx
from opifex._cascade.resize import prolongate, restrict
from opifex._transfer._axis import _shares, split
from opifex._transfer.base import prolongate_model, restrict_model
from opifex._transfer.chain import Chain
from opifex._transfer.deepen import Deepen
from opifex._transfer.modes import PadModes
from opifex._transfer.widen import Widen
from opifex.neural import MLP
from opifex.neural.fno import FNO

from .helpers import assert_same_bits, bits, Poisson, SAMPLERS, Sine


class Gated(eqx.Module):
    """Gates and a skip connection between dense layers."""

    layers: list[eqx.nn.Linear]

    def __init__(self, width, *, key):
        sizes = [(2, width), (2, width), (width, width), (width, 1)]
        keys = jr.split(key, 4)
        self.layers = [
            eqx.nn.Linear(*s, key=k) for s, k in zip(sizes, keys, strict=True)
        ]

    def __call__(self, x):
        gate, first, middle, last = self.layers
        h = jnp.sin(first(x))
        return last(h + jax.nn.sigmoid(gate(x)) * jnp.tanh(middle(h)))


def dense(*sizes, activation=jnp.tanh):
    return lambda key: MLP(sizes, activation, key=key)


def fno(dim, modes, width=3, wide=3):
    def make(key):
        options = {"width": width, "num_layers": 1, "project_sizes": (wide,)}
        return FNO(dim, 1, 1, modes=modes, key=key, **options)

    return make


def vector(key):
    return jr.normal(key, (2,))


def field(dim):
    return lambda key: jr.normal(key, (7, 8, 6)[:dim] + (1,))


LAST = Widen(channels_last=True)
# A transfer, makers of the two models, and of a point to evaluate them at.
MODELS = {
    "to_any": (
        Widen(),
        dense(2, 1, 4, 5, 2, activation=jnp.sin),
        dense(2, 9, 4, 11, 2, activation=jnp.sin),
        vector,
    ),
    "eqx_without_bias": (
        Widen(),
        lambda key: eqx.nn.MLP(2, 1, 4, 2, use_bias=False, key=key),
        lambda key: eqx.nn.MLP(2, 1, 10, 2, use_bias=False, key=key),
        vector,
    ),
    "gated": (
        Widen(),
        lambda key: Gated(4, key=key),
        lambda key: Gated(9, key=key),
        vector,
    ),
    "modes_1d": (PadModes(), fno(1, 2), fno(1, 4), field(1)),
    "modes_3d": (PadModes(), fno(3, 2), fno(3, (3, 2, 3)), field(3)),
    "modes_and_channels": (
        Chain(LAST, PadModes()),
        fno(2, (2, 3), 2, 3),
        fno(2, (3, 4), 5, 8),
        field(2),
    ),
    "deeper": (
        Deepen(),
        dense(2, 6, 1, activation=jax.nn.relu),
        dense(2, 6, 6, 6, 1, activation=jax.nn.relu),
        vector,
    ),
    "deeper_and_wider": (
        Chain(Deepen(), Widen()),
        lambda key: eqx.nn.MLP(2, 1, 4, 1, key=key),
        lambda key: eqx.nn.MLP(2, 1, 7, 3, key=key),
        vector,
    ),
}


def arrays(tree):
    return eqx.filter(tree, eqx.is_inexact_array)


def close(one, other, tolerance=1e-12):
    assert jtu.tree_structure(one) == jtu.tree_structure(other)
    for a, b in zip(bits(one), bits(other), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_the_function_stays_and_the_way_back_is_exact(case):
    transfer, make_coarse, make_fine, draw = case
    coarse = make_coarse(jr.key(1))
    shape = eqx.filter_eval_shape(make_fine, jr.key(2))
    points = jax.vmap(draw)(jr.split(jr.key(3), 5))

    @eqx.filter_jit
    def see(coarse):
        fine = prolongate_model(transfer, coarse, shape)
        loss = lambda model: jnp.sum(jax.vmap(model)(points) ** 2)
        values = jax.vmap(coarse)(points), jax.vmap(fine)(points)
        back = restrict_model(transfer, fine, coarse)
        return back, values, eqx.filter_grad(loss)(fine)

    back, (want, have), gradient = see(coarse)
    assert_same_bits(back, coarse)
    assert jnp.max(jnp.abs(want - have)) <= 1e-12 * jnp.max(jnp.abs(want))
    # Everything is alive: no array of the fine model is without a gradient, and of a
    # network that is not a rectifier no entry.
    gradient = jtu.tree_leaves(gradient)
    assert all(jnp.any(g != 0) for g in gradient)
    if isinstance(transfer, Widen):
        smooth = make_coarse is not MODELS["eqx_without_bias"][1]
        assert not smooth or all(jnp.all(g != 0) for g in gradient)


def test_models_under_vmap():
    transfer, make_coarse, make_fine, _ = MODELS["to_any"]
    shape = eqx.filter_eval_shape(make_fine, jr.key(2))
    coarse = eqx.filter_vmap(make_coarse)(jr.split(jr.key(1), 2))
    grow = lambda model: prolongate_model(transfer, model, shape)
    fine = eqx.filter_vmap(grow)(coarse)
    shrink = lambda model: restrict_model(transfer, model, make_coarse(jr.key(1)))
    assert_same_bits(eqx.filter_vmap(shrink)(fine), coarse)
    pick = lambda tree: jtu.tree_map(lambda x: x[1] if eqx.is_array(x) else x, tree)
    assert_same_bits(pick(fine), grow(pick(coarse)))


@pytest.mark.parametrize("copies", [1, 2, 3, 4, 5, 7, 8, 33, 100])
def test_shares(copies):
    shares = _shares(copies)
    assert len(set(shares)) == copies and np.all(shares > 0)
    assert np.sum(shares.astype(np.float32), dtype=np.float32) == 1
    assert np.log2(shares[0]) % 1 == 0


def test_by_hand():
    """Two units become five: the first has the copies 0, 2 and 4."""
    into, out = split(2, 5, outgoing=False), split(2, 5, outgoing=True)
    np.testing.assert_array_equal(into.index, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(out.value[[1, 3]], [0.25, 0.75])
    np.testing.assert_array_equal(into.grad, out.value)
    w, v = jnp.array([[1.0], [2.0]]), jnp.array([[10.0, 20.0]])
    zero = [jnp.zeros(2), jnp.zeros(1)]
    replace = lambda m, a: eqx.tree_at(lambda m: (m.weights, m.biases), m, a)
    coarse = replace(dense(1, 2, 1)(jr.key(0)), ([w, v], zero))
    fine = prolongate_model(Widen(), coarse, dense(1, 5, 1)(jr.key(1)))
    np.testing.assert_array_equal(fine.weights[0][:, 0], [1, 2, 1, 2, 1])
    np.testing.assert_array_equal(fine.weights[1][0, [1, 3]], [5, 15])
    # A unit is the mean of its copies, a weight that reads it the sum of theirs.
    moved = eqx.tree_at(
        lambda m: (m.weights[0], m.weights[1]),
        fine,
        (fine.weights[0].at[3, 0].add(4), fine.weights[1].at[0, 3].add(1)),
    )
    back = restrict_model(Widen(), moved, coarse)
    np.testing.assert_allclose(back.weights[0][:, 0], [1, 2 + 0.75 * 4], rtol=1e-15)
    np.testing.assert_allclose(back.weights[1][0], [10, 21], rtol=1e-15)


def soap_like(decay=0.9):
    """Adam in the eigenbasis of the factors of Shampoo (N. Vyas et al., "SOAP:
    improving and stabilizing Shampoo using Adam", ICLR 2025), for matrices."""

    def init(params):
        square = lambda p: [jnp.zeros((n, n)) for n in p.shape]
        basis = lambda p: [jnp.eye(n) for n in p.shape]
        zeros = lambda: jtu.tree_map(jnp.zeros_like, params)
        return {
            "count": jnp.zeros((), jnp.int32),
            "factors": jtu.tree_map(square, params),
            "bases": jtu.tree_map(basis, params),
            "m": zeros(),
            "v": zeros(),
        }

    def update(updates, state, params=None):
        del params
        matrix = lambda g: g if g.ndim == 2 else g[:, None]

        def one(g, factors, m, v):
            rows, columns = matrix(g) @ matrix(g).T, matrix(g).T @ matrix(g)
            new = [
                decay * f + (1 - decay) * s
                for f, s in zip(factors, [rows, columns], strict=False)
            ]
            bases = [jnp.linalg.eigh(f)[1] for f in new]
            turned = bases[0].T @ matrix(g) @ (bases[1] if g.ndim == 2 else jnp.eye(1))
            v = decay * v + (1 - decay) * turned.reshape(g.shape) ** 2
            return new, bases, decay * m + (1 - decay) * g, v

        leaves, treedef = jtu.tree_flatten(updates)
        lists = [treedef.flatten_up_to(state[k]) for k in ("factors", "m", "v")]
        parts = [one(*group) for group in zip(leaves, *lists, strict=True)]
        names = ("factors", "bases", "m", "v")
        new = {n: treedef.unflatten([p[i] for p in parts]) for i, n in enumerate(names)}
        return new["m"], new | {"count": state["count"] + 1}

    return optax.GradientTransformation(init, update)


def kinds_of_layers(params):
    leaves = jtu.tree_leaves(params)
    treedef = jtu.tree_structure(params)
    return treedef.unflatten(["a" if x.ndim == 2 else "b" for x in leaves])


MASK = lambda params: jtu.tree_map(lambda x: x.ndim == 2, params)
OPTIMIZERS = {
    "clip_and_momentum": lambda: optax.chain(
        optax.clip_by_global_norm(1e-3), optax.sgd(1e-2, 0.9, nesterov=True)
    ),
    # Momentum of what is normalised, and so of degree zero.
    "rmsprop": lambda: optax.rmsprop(
        optax.cosine_decay_schedule(1e-2, 100), eps=1e-30, centered=True, momentum=0.5
    ),
    "masked": lambda: optax.chain(
        optax.masked(optax.trace(0.9), MASK), optax.scale_by_lion(), optax.ema(0.9)
    ),
    "parts": lambda: optax.multi_transform(
        {
            "a": optax.inject_hyperparams(optax.adan)(1e-2),
            "b": optax.MultiSteps(optax.adam(1e-2), 3).gradient_transformation(),
        },
        kinds_of_layers,
    ),
    "two_phases": lambda: opx.phases((optax.adam(1e-3), 9), (optax.adam(1e-3), 9)),
}
SECOND_ORDER = {
    "lbfgs": lambda: optax.lbfgs(memory_size=3),
    "nncg": lambda: opx.nncg(rank=3),
    "soap": lambda: opx.soap(1e-3, every=2),
    "phases": lambda: opx.phases((optax.adam(1e-3), 2), (opx.ssbroyden(), 9)),
}
POINTS = jr.normal(jr.key(7), (6, 6, 2))
NO = opx.NoRecovery()


def loss_of(model, points):
    return jnp.mean((jax.vmap(model)(points)[:, 0] - jnp.sin(points[:, 0])) ** 2)


def after(optim, model, length=4, apply=False):
    """The state of the optimizer after some steps, which are taken if `apply`."""
    update = optax.with_extra_args_support(optim).update

    @jax.jit
    def step(model, state, points):
        value_fn = lambda m: loss_of(m, points)
        value, grads = jax.value_and_grad(value_fn)(model)
        extra = {"value": value, "grad": grads, "value_fn": value_fn}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = update(grads, state, model, **extra)
        return (eqx.apply_updates(model, updates) if apply else model), state

    state = opx.init(optim, SAMPLERS["fixed"](), NO, model, key=jr.key(0))
    opt_state = state.opt_state
    for points in POINTS[:length]:
        points = POINTS[0] if apply else points
        model, opt_state = step(model, opt_state, points)
    state = eqx.tree_at(lambda s: (s.model, s.opt_state), state, (model, opt_state))
    return state, step


def assert_way_back(optim, state, fine, exact=True):
    back = restrict(Widen(), optim, NO, fine, state.model)
    if exact:
        assert_same_bits(back, state)
    else:
        close(arrays(back), arrays(state), 1e-11)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_moments_are_those_of_the_fine_model(make):
    """Every gradient that the coarse model has seen, the fine one would have seen by
    its own rule; so the two ways to its moments agree."""
    optim = make()
    coarse, like = dense(2, 3, 4, 1)(jr.key(1)), dense(2, 6, 9, 1)(jr.key(2))
    state, _ = after(optim, coarse)
    fine = prolongate(Widen(), optim, NO, state, like)
    assert_way_back(optim, state, fine)
    assert fine.step_scale == 4 / 9
    own, _ = after(optim, fine.model)
    # But for the norm that is clipped, which is of all entries together.
    if make is not OPTIMIZERS["clip_and_momentum"]:
        # (`MultiSteps` divides in single precision.)
        close(arrays(fine.opt_state), arrays(own.opt_state), 1e-7)


@pytest.mark.parametrize("make", SECOND_ORDER.values(), ids=SECOND_ORDER)
def test_second_order(make):
    optim = make()
    coarse, like = dense(2, 3, 1)(jr.key(1)), dense(2, 7, 1)(jr.key(2))
    state, _ = after(optim, coarse, apply=True)
    fine = prolongate(Widen(), optim, NO, state, like)
    assert_way_back(optim, state, fine, exact=False)
    # Those that search along a line find the length of their steps anew.
    assert fine.step_scale == (3 / 7 if make is SECOND_ORDER["soap"] else 1)


def test_the_next_step_is_the_same_function(key):
    """A quasi-Newton step in the space of the coarse model does not depend on what
    surrounds that."""
    optim = opx.ssbroyden()
    state, _ = after(optim, dense(2, 3, 1)(key), apply=True)
    fine = prolongate(Widen(), optim, NO, state, dense(2, 7, 1)(key))
    assert_way_back(optim, state, fine, exact=False)
    assert fine.step_scale == 1

    def step(state):
        grad = jax.grad(loss_of)(state.model, POINTS[1])
        flat, unravel = ravel_pytree(grad)
        return unravel(-state.opt_state.inverse @ flat)

    close(step(fine), prolongate_model(Widen(), step(state), fine.model), 1e-11)
    # And inverse Hessians stay positive.
    for h in (state.opt_state.inverse, fine.opt_state.inverse):
        np.testing.assert_allclose(h, h.T, atol=1e-12)
        assert jnp.linalg.eigvalsh(h)[0] > 0


def test_factors_and_bases(key):
    """As in Shampoo and SOAP: both axes of a factor are one of the parameter."""
    optim = soap_like()
    state, _ = after(optim, dense(2, 3, 1)(key))
    fine = prolongate(Widen(), optim, NO, state, dense(2, 6, 1)(key))
    assert_way_back(optim, state, fine, exact=False)
    own, _ = after(optim, fine.model)
    close(fine.opt_state["m"], own.opt_state["m"], 1e-14)
    old, new = state.opt_state, fine.opt_state
    # Biases have one axis, so nothing is summed over: the very factor.
    close(new["factors"].biases, own.opt_state["factors"].biases, 1e-14)
    for q in jtu.tree_leaves(new["bases"]):
        np.testing.assert_allclose(q.T @ q, jnp.eye(len(q)), atol=1e-12)
    # It diagonalises the factor, in the same order and then the rest.
    q, factor = new["bases"].weights[0][0], new["factors"].weights[0][0]
    diagonal = q.T @ factor @ q
    np.testing.assert_allclose(diagonal, jnp.diag(jnp.diag(diagonal)), atol=1e-12)
    share = 0.25**2 + 0.75**2
    old_q, old_factor = old["bases"].weights[0][0], old["factors"].weights[0][0]
    old_diagonal = jnp.diag(old_q.T @ old_factor @ old_q)
    np.testing.assert_allclose(jnp.diag(diagonal)[:3], share * old_diagonal, atol=1e-12)
    np.testing.assert_allclose(
        new["v"].weights[0][:3], share * old["v"].weights[0], rtol=1e-12
    )


def cubes():
    def init(params):
        return {"cube": jtu.tree_map(jnp.zeros_like, params)}

    def update(updates, state, params=None):
        del params
        cube = jtu.tree_map(lambda c, g: c + g**3, state["cube"], updates)
        return updates, {"cube": cube}

    return optax.GradientTransformation(init, update)


def test_rules_of_ones_own(key):
    optim = cubes()
    state, _ = after(optim, dense(2, 3, 1)(key))
    like = dense(2, 6, 1)(key)
    with pytest.raises(ValueError, match=r"opt_state\['cube'\].*no rule.*rules"):
        prolongate(Widen(), optim, NO, state, like)
    with pytest.raises(ValueError, match="Unknown name 'copies' in `rules`"):
        prolongate(Widen(), optim, NO, state, like, rules=[("cube", "copies")])
    rules = [(lambda path, x: "cube" in path and x.ndim > 0, "copy")]
    fine = prolongate(Widen(), optim, NO, state, like, rules=rules)
    old, new = (s.opt_state["cube"].weights[0] for s in (state, fine))
    np.testing.assert_array_equal(new, jnp.concatenate([old, old]))


def test_new_modes_begin_with_the_mean_second_moment(key):
    optim = optax.adam(1e-3)
    small, large = fno(2, 2)(key), eqx.filter_eval_shape(fno(2, 3), key)
    state = opx.init(optim, SAMPLERS["fixed"](), NO, small, key=key)
    loss = lambda m: jnp.sum(m(field(2)(key)) ** 2)
    gradient = eqx.filter_jit(eqx.filter_grad(loss))(small)
    with jax.numpy_dtype_promotion("standard"):
        _, opt_state = optim.update(arrays(gradient), state.opt_state)
    state = eqx.tree_at(lambda s: s.opt_state, state, opt_state)
    fine = prolongate(PadModes(), optim, NO, state, large)
    assert fine.step_scale == 1
    old, new = state.opt_state[0], fine.opt_state[0]
    for a, b in zip(old.nu.spectral, new.nu.spectral, strict=True):
        inside = (slice(None), slice(1, 4), slice(0, 2))
        np.testing.assert_array_equal(b.weight[inside], a.weight)
        outside = np.ones(b.weight.shape, bool)
        outside[inside] = False
        np.testing.assert_array_equal(b.weight[outside], jnp.mean(a.weight))
    for a, b in zip(old.mu.spectral, new.mu.spectral, strict=True):
        assert jnp.sum(jnp.abs(b.weight)) == pytest.approx(jnp.sum(jnp.abs(a.weight)))
    assert_same_bits(restrict(PadModes(), optim, NO, fine, small), state)


def test_new_layers_in_the_state_of_the_optimizer(key):
    optim, transfer = optax.adam(1e-3), Chain(Deepen(), Widen())
    small = dense(2, 3, 1, activation=jax.nn.relu)(key)
    large = dense(2, 6, 6, 1, activation=jax.nn.relu)(key)
    state, _ = after(optim, small)
    fine = prolongate(transfer, optim, NO, state, large)
    nu = fine.opt_state[0].nu
    assert jnp.all(nu.weights[1] == nu.weights[1][0, 0]) and nu.weights[1][0, 0] > 0
    assert not jnp.any(fine.opt_state[0].mu.weights[1])
    np.testing.assert_array_equal(fine.model.weights[1], jnp.eye(6))
    assert_same_bits(restrict(transfer, optim, NO, fine, small), state)


def test_the_whole_state_is_carried(key):
    """Whatever is in it, under jit, and for all members of an ensemble at once."""
    recovery = opx.Backtrack(clips=True, max_grad_norm=10.0)
    optim, sampler = optax.adam(1e-3), SAMPLERS["uniform"]()
    recipe = opx.Recipe(Sine(), optim, sampler, recovery, steps=3)
    make = lambda key: recipe.init(dense(1, 4, 1)(key), key=key)
    states = eqx.filter_vmap(make)(jr.split(key, 2))
    states, _ = eqx.filter_jit(eqx.filter_vmap(recipe))(states)
    like = dense(1, 8, 1)(key)
    grow = lambda s: prolongate(Widen(), optim, recovery, s, like)
    fines = eqx.filter_jit(eqx.filter_vmap(grow))(states)
    pick = lambda tree: jtu.tree_map(lambda x: x[1] if eqx.is_array(x) else x, tree)
    state, fine = pick(states), pick(fines)
    assert_same_bits(fine, grow(state))
    for name in ("sampler_state", "weighting_state", "progress", "step", "key"):
        assert_same_bits(getattr(fine, name), getattr(state, name))
    assert_same_bits(fine.recovery_state.ground, (fine.model, fine.opt_state))
    assert_same_bits(fine.recovery_state.faults, state.recovery_state.faults)
    assert fine.step_scale == state.step_scale / 2
    back = restrict(Widen(), optim, recovery, fine, state.model)
    for name in ("model", "opt_state", "step_scale", "clip_norm"):
        assert_same_bits(getattr(back, name), getattr(state, name))


def test_the_loss_does_not_leap(key):
    """Of 16 to 64 units; without the shorter steps it does, by far."""
    optim = optax.adam(5e-3)
    recipe = opx.Recipe(Poisson(), optim, SAMPLERS["sobol"](), NO, steps=200)
    recipe = eqx.tree_at(lambda r: r.sampler, recipe, SAMPLERS["fixed"]())
    state = recipe.init(dense(1, 16, 16, 1)(key), key=key)
    state = opx.fit(recipe, state, num_chunks=5)
    peaks = []
    for ratio in (None, 1.0):
        like = dense(1, 64, 64, 1)(key)
        fine = prolongate(Widen(), optim, NO, state, like, step_ratio=ratio)
        loss = eqx.filter_jit(recipe)(fine)[1].loss
        peaks.append(jnp.max(loss) / loss[0])
    assert peaks[0] <= 1.2
    assert peaks[1] > 2


RELU = jax.nn.relu
BAD = {
    "wider": (
        Widen(),
        dense(2, 5, 1),
        dense(2, 4, 1),
        r"weights\[0\]`.*\(5, 2\).*\(4, 2\)",
    ),
    "depth": (Widen(), dense(2, 5, 1), dense(2, 5, 5, 1), r"same depth.*Deepen"),
    "activation": (
        Widen(),
        dense(2, 3, 1),
        dense(2, 4, 1, activation=jnp.sin),
        r"`\.activation` is tanh .* sin .*same activation",
    ),
    "modes": (PadModes(), fno(1, 4), fno(1, 3), r"spectral\[0\].*must be the smaller"),
    "not_mine": (PadModes(), dense(2, 3, 1), dense(2, 4, 1), r"does not grow axis 0"),
    "inputs": (Widen(), fno(1, 4), fno(1, 5), r"does not grow axis 1.*`Chain`"),
    "no_identity": (Deepen(), dense(2, 3, 1), dense(2, 3, 3, 1), r"tanh.*idempotent"),
    "not_square": (
        Deepen(),
        dense(2, 3, 1, activation=RELU),
        dense(2, 3, 4, 1, activation=RELU),
        r"weights\[1\]`, a new layer, has shape \(4, 3\)",
    ),
    "norm": (
        Widen(),
        lambda key: eqx.nn.LayerNorm(3),
        lambda key: eqx.nn.LayerNorm(6),
        r"is a `LayerNorm`.*same size",
    ),
    "dtype": (
        Widen(),
        dense(2, 3, 1),
        lambda key: MLP((2, 4, 1), key=key, dtype=jnp.float32),
        r"float64.*float32.*`dtype`",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named(case, key):
    transfer, coarse, fine, message = case
    with pytest.raises(ValueError, match=message):
        prolongate_model(transfer, coarse(key), fine(key))
    with pytest.raises(ValueError, match=message):
        restrict_model(transfer, fine(key), coarse(key))


def test_other_bad_input(key):
    optim = optax.adam(1e-3)
    state, _ = after(optim, dense(2, 3, 1)(key), length=1)
    like = dense(2, 4, 1)(key)
    with pytest.raises(ValueError, match="`step_ratio` must be positive"):
        prolongate(Widen(), optim, NO, state, like, step_ratio=0)
    with pytest.raises(ValueError, match="opt_state.*same kind of optimizer"):
        prolongate(Widen(), optax.sgd(1e-3, 0.9), NO, state, like)
    with pytest.raises(ValueError, match="`transfers` is empty"):
        Chain()
    adafactor = optax.adafactor(1e-3, min_dim_size_to_factor=2)
    state, _ = after(adafactor, dense(2, 4, 4, 1)(key), length=1)
    with pytest.raises(ValueError, match=r"opt_state\[0\].*cannot be carried"):
        prolongate(Widen(), adafactor, NO, state, dense(2, 6, 6, 1)(key))
