"""What weightings are shown, when, and that all of them keep the contract."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import jaxtyping
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._weighting.annealing import LearningRateAnnealing
from opifex._weighting.augmented_lagrangian import AugmentedLagrangian
from opifex._weighting.base import Needs, Pointwise
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

from .helpers import assert_same_bits, bits, mlp, Poisson, poisson, SAMPLERS, WEIGHTINGS


def assert_close(one, other, rtol=1e-6, atol=0.0):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=atol)


class Line(opx.AbstractResidualProblem):
    """Residuals that are linear in the parameters, and one that is quadratic."""

    def residuals(self, model, batch):
        a, b = batch["a"] @ model["w"], batch["b"] @ model["w"]
        turned = jax.lax.complex(b * model["c"], 2 * b * model["c"])
        return {"a": a - 1, "b/turned": turned, "b/square": b**2}


LINE = {"w": jnp.array([0.3, -0.7]), "c": jnp.array(0.5)}
BATCH = {
    "a": jr.normal(jr.key(1), (8, 2)),
    "b": jr.normal(jr.key(2), (4, 2)),
}


def line_recipe(weighting, **kwargs):
    options = {"recovery": opx.NoRecovery(), "steps": 10} | kwargs
    sampler = opx.Fixed(BATCH)
    optim = options.pop("optim", optax.sgd(0.01))
    return opx.Recipe(Line(), optim, sampler, weighting=weighting, **options)


class Spy(opx.AbstractWeighting):
    """Keeps what it is shown; declares to need what it is told."""

    needs: frozenset = eqx.field(static=True, default=frozenset())
    weight: opx.AbstractWeighting = opx.Static()
    every: int = eqx.field(static=True, default=1)

    def init(self, terms):
        vector = {"w": jnp.zeros(2), "c": jnp.zeros(())}
        zero = {n: jnp.zeros(()) for n in terms}
        residuals = {n: jnp.zeros(t.shape, t.dtype) for n, t in terms.items()}
        kept = {n: vector for n in terms}, zero, zero, residuals
        return jtu.tree_map(jnp.array, kept)

    def at_points(self, state, residuals, batch):
        return self.weight.at_points(None, residuals, batch)

    def update(self, state, observed):
        return (
            observed.term_gradients(),
            observed.point_gradients(8),
            observed.point_gradients(2),
            observed.residuals,
        )


class Tilt(opx.AbstractWeighting):
    """Weights of points that depend on all residuals at once."""

    needs: frozenset = eqx.field(static=True, default=frozenset({Needs.RESIDUALS}))
    every: int = eqx.field(static=True, default=1)

    def init(self, terms):
        return None

    def at_points(self, state, residuals, batch):
        size, turned = jnp.abs(residuals["a"]), residuals["b/turned"]
        weights = {"a": size / jnp.sum(size), "b/square": jnp.max(size)}
        multipliers = {"b/turned": jnp.sum(size).astype(complex) * turned + 1j}
        return Pointwise(weights, multipliers)

    def update(self, state, observed):
        return state


def plain_residuals(params):
    return Line().residuals(params, BATCH)


def plain_parts(params, frozen):
    """The terms with the weights of points of `Tilt` at `frozen`."""
    r, at = plain_residuals(params), plain_residuals(frozen)
    size = jnp.abs(at["a"])
    multiplier = jnp.sum(size).astype(complex) * at["b/turned"] + 1j
    linear = jnp.conj(multiplier) * r["b/turned"]
    return {
        "a": jnp.mean(size / jnp.sum(size) * r["a"] ** 2),
        "b/turned": jnp.mean(jnp.abs(r["b/turned"]) ** 2 + jnp.real(linear)),
        "b/square": jnp.mean(jnp.max(size) * r["b/square"] ** 2),
    }


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_a_weighting_is_shown(accumulate, key):
    spy = Spy(frozenset(Needs), Tilt())
    recipe = line_recipe(spy, accumulate=accumulate, remat=accumulate == 2)
    state, info = eqx.filter_jit(recipe.step)(recipe.init(LINE, key=key))
    gradients, traces, estimates, residuals = state.weighting_state
    for name, r in plain_residuals(LINE).items():
        # The weights of points are in the gradient, but are not differentiated.
        grad = jax.grad(lambda p, name=name: plain_parts(p, LINE)[name])(LINE)
        jtu.tree_map(lambda g, h: assert_close(g, h, 1e-12), gradients[name], grad)
        assert_close(residuals[name], r, 1e-14)
        assert_close(info.terms[name], jnp.mean(jnp.abs(r) ** 2), 1e-13)
    a, b = BATCH["a"], BATCH["b"]
    bw, c = b @ LINE["w"], 0.5
    rows = {
        "a": jnp.sum(a**2, 1),
        "b/turned": 5 * (c**2 * jnp.sum(b**2, 1) + bw**2),
        "b/square": (2 * bw) ** 2 * jnp.sum(b**2, 1),
    }
    for name, r in rows.items():
        assert_close(traces[name], jnp.sum(r), 1e-12)
        assert_close(
            estimates[name],
            jnp.sum(r[jnp.array([0, r.size // 2])]) * (r.size / 2),
            1e-12,
        )
    total = sum(plain_parts(LINE, LINE).values())
    assert_close(info.loss, total, 1e-13)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_weights_of_points_in_a_step_and_in_a_line_search(accumulate, key):
    loss = lambda p: sum(plain_parts(p, LINE).values())
    elsewhere = {"w": jnp.array([1.0, 2.0]), "c": jnp.array(-1.0)}

    def update(grads, state, params, *, value, grad, value_fn):
        found = value, value_fn(elsewhere), jax.grad(value_fn)(elsewhere)
        return grads, found

    init = lambda params: (jnp.zeros(()), jnp.zeros(()), jtu.tree_map(jnp.copy, params))
    optim = optax.GradientTransformationExtraArgs(init, update)
    recipe = line_recipe(Tilt(), optim=optim, accumulate=accumulate)
    state, info = eqx.filter_jit(recipe.step)(recipe.init(LINE, key=key))
    grads = jtu.tree_map(jnp.subtract, state.model, LINE)
    jtu.tree_map(lambda g, h: assert_close(g, h, 1e-12), grads, jax.grad(loss)(LINE))
    value, there, slope = state.opt_state
    assert_close([value, there], [loss(LINE), loss(elsewhere)], 1e-12)
    expected = jax.grad(loss)(elsewhere)
    jtu.tree_map(lambda g, h: assert_close(g, h, 1e-12), slope, expected)
    assert info.weights == {name: 1 for name in info.terms}


class Counting(Poisson):
    """Poisson's equation that counts how often it is evaluated, when it runs."""

    count: list = eqx.field(static=True, default_factory=list)

    def residuals(self, model, batch):
        jax.debug.callback(lambda: self.count.append(1))
        return Poisson().residuals(model, batch)


def outside_of_branches(jaxpr, name):
    """How many operations of this name there are, where no condition guards them."""
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == name
        if eqn.primitive.name != "cond":
            inner = [v for p in eqn.params.values() for v in jtu.tree_leaves(p)]
            for x in inner:
                x = getattr(x, "jaxpr", x)
                if isinstance(x, jax.extend.core.Jaxpr):
                    count += outside_of_branches(x, name)
    return count


@pytest.mark.parametrize(
    "weighting, more",
    [
        (opx.Static(), 0),
        (ReLoBRaLo(), 0),
        (Causal(("interior",), 0, (-1, 1)), 0),
        # Two terms, at the steps 0, 4 and 8.
        (GradNormBalance(every=4), 2 * 3),
        (NTK(max_points=2, every=4), None),
    ],
)
def test_nothing_is_computed_that_is_not_needed(weighting, more, key):
    recipe = light("ones", weighting=weighting)
    model = small(key)
    state = recipe.init(model, key=key)
    ones = replace(recipe, weighting=opx.Static())
    tanhs = [
        outside_of_branches(eqx.filter_make_jaxpr(r.step)(s)[0].jaxpr, "tanh")
        for r, s in ((recipe, state), (ones, ones.init(model, key=key)))
    ]
    assert tanhs[0] == tanhs[1] > 0
    if more is not None:
        counting = replace(recipe, problem=Counting())
        jax.block_until_ready(eqx.filter_jit(counting)(state)[1].loss)
        jax.effects_barrier()
        assert len(counting.problem.count) == recipe.steps + more


class Once(Poisson):
    """Poisson's equation that counts how often it is traced."""

    count: list = eqx.field(static=True, default_factory=list)

    def residuals(self, model, batch):
        self.count.append(1)
        return Poisson().residuals(model, batch)


def small(key):
    return eqx.nn.MLP(1, 1, 4, 1, jnp.tanh, key=key)


def light(name, **kwargs):
    """A recipe that compiles quickly: what is tested is the weighting."""
    options = {
        "weighting": WEIGHTINGS[name](),
        "sampler": SAMPLERS["fixed"](),
        "recovery": opx.NoRecovery(),
        "optim": optax.sgd(1e-3),
    }
    return poisson(**(options | kwargs))[0]


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_contract(name, key):
    problem = Once(count=[])
    recipe = replace(light(name), problem=problem)
    state = recipe.init(small(key), key=key)
    infos = []
    watch = [opx.Collect(infos.append)]
    whole = opx.fit(recipe, state, num_chunks=2, callbacks=watch)
    traces = len(problem.count)
    # The same, interrupted; and nothing is traced again.
    half = opx.fit(recipe, state, num_chunks=1)
    assert_same_bits(opx.fit(recipe, half, num_chunks=1), whole)
    assert len(problem.count) == traces
    assert whole.step == 20
    for info in infos:
        numbers = jtu.tree_leaves((info.weights, info.metrics, info.loss))
        assert all(x.shape == (10,) and np.all(np.isfinite(x)) for x in numbers)
    assert all(np.all(np.isfinite(x)) for x in bits(whole.weighting_state))
    types = [
        jtu.tree_map(lambda x: (x.aval, x.weak_type), s.weighting_state)
        for s in (state, whole)
    ]
    assert jtu.tree_leaves(types[0]) == jtu.tree_leaves(types[1])
    changed = {"ones": False, "static": False}.get(name, True)
    assert differ(whole.weighting_state, state.weighting_state) == changed


class Quick(opx.AbstractResidualProblem):
    """A problem of the same terms that compiles at once."""

    def residuals(self, model, batch):
        x, ends = batch["interior"][:, 0], batch["boundary"][:, 0]
        return {"interior": model[0] * x**2 - model[1], "boundary": model[1] * ends}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_members_and_microbatches(name, key):
    recipe = replace(light(name), problem=Quick())
    states = [recipe.init(jnp.array(w), key=key) for w in ([1.0, 2.0], [-0.5, 0.1])]
    both = jtu.tree_map(lambda *x: jnp.stack(x), *states)
    together = eqx.filter_jit(eqx.filter_vmap(recipe.step))
    # In halves, which must make no difference.
    alone = eqx.filter_jit(replace(recipe, accumulate=2).step)
    # The schedule of Optax is computed in single precision.
    rtol = 1e-6 if name == "scheduled" else 1e-9
    for _ in range(6):
        both, info = together(both)
        own = [alone(state) for state in states]
        states = [state for state, _ in own]
        for i in range(2):
            for one, other in zip(bits((both, info)), bits(own[i]), strict=True):
                np.testing.assert_allclose(one[i], other, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_dtypes_stay_what_they_are(name, key):
    for dtype, precision in ((jnp.float32, None), (float, "bfloat16")):
        recipe = light(name, precision=opx.Precision(precision))
        points = {n: x.astype(dtype) for n, x in recipe.sampler.points.items()}
        recipe = replace(recipe, sampler=opx.Fixed(points), problem=Quick())
        state = recipe.init(jnp.ones(2, dtype), key=key)
        after, infos = eqx.filter_eval_shape(recipe.step, state)
        types = lambda tree: [(x.shape, x.dtype) for x in arrays_of(tree)]
        assert types(after.weighting_state) == types(state.weighting_state)
        assert types(after.model) == types(state.model)
        assert infos.loss.dtype == (precision or dtype)


def differ(one, other):
    return any(np.any(a != b) for a, b in zip(bits(one), bits(other), strict=True))


def arrays_of(tree):
    return [x for x in jtu.tree_leaves(tree) if hasattr(x, "dtype")]


def test_a_loop_of_ones_own(key):
    weighting = SelfAdaptive(("boundary",), optim=optax.sgd(1.0))
    optim, sampler, recovery = optax.sgd(0.1), SAMPLERS["fixed"](), opx.NoRecovery()
    state = opx.init(
        optim,
        sampler,
        recovery,
        mlp(key),
        weighting=weighting,
        terms={"interior": 16, "boundary": 2},
        key=key,
    )
    recipe = opx.Recipe(Poisson(), optim, sampler, recovery, weighting)
    assert_same_bits(state, recipe.init(mlp(key), key=key))


INTERIOR = Causal(("interior",), 0, (-1, 1))
WRONG = {
    "scheduled": Scheduled({"bounday": 2.0}),
    "annealing": LearningRateAnnealing("bounday"),
    "causal": Causal(("bounday",), 0, (0, 1)),
    "self_adaptive": SelfAdaptive(("bounday",)),
    "residual_attention": ResidualAttention(("bounday",)),
    "augmented_lagrangian": AugmentedLagrangian(("bounday",)),
    "product": Product(GradNormBalance(), opx.Static({"bounday": 2.0})),
}


@pytest.mark.parametrize("name", WRONG)
def test_unknown_terms(name, key):
    recipe, model = poisson(weighting=WRONG[name], sampler=SAMPLERS["fixed"]())
    with pytest.raises(ValueError, match="'bounday' in `weighting`.*mean 'boundary'"):
        recipe.step(recipe.init(model, key=key))


class Extra(Poisson):
    def terms(self, model, batch, key):
        terms, aux = opx.AbstractResidualProblem.terms(self, model, batch, key)
        return terms | {"extra": terms["interior"]}, aux


class Coupled(opx.AbstractResidualProblem):
    def residuals(self, model, batch):
        x = batch["interior"][:, 0]
        return {"interior": jnp.stack([x, model * x], 1).reshape(-1)}


def supervised(weighting):
    x = jnp.ones((4, 1))
    return opx.Recipe(
        opx.Supervised(),
        optax.sgd(0.1),
        opx.Fixed(opx.Pairs(x, x)),
        weighting=weighting,
    )


def step(weighting, **kwargs):
    recipe, model = poisson(weighting=weighting, **kwargs)
    return recipe.step(recipe.init(model, key=jr.key(0)))


def step_coupled(weighting):
    recipe, _ = poisson(weighting=weighting)
    recipe = replace(recipe, problem=Coupled())
    return recipe.step(recipe.init(jnp.ones(()), key=jr.key(0)))


def step_unnamed(weighting, terms=()):
    args = optax.sgd(0.1), SAMPLERS["fixed"](), opx.NoRecovery()
    model = mlp(jr.key(0))
    options = {"weighting": weighting, "key": jr.key(0)}
    state = opx.init(*args, model, terms=terms, **options)
    batch = SAMPLERS["fixed"]().points
    return opx.train_step(Poisson(), args[0], state, batch, weighting=weighting)


BAD = {
    "points of data": (
        lambda: supervised(INTERIOR),
        TypeError,
        "`Causal`, which needs the residual at every point.*`Supervised`.*`Static`",
    ),
    "kernel of data": (
        lambda: supervised(NTK()),
        TypeError,
        "`NTK`, which needs the gradient of the residual.*AbstractResidualProblem",
    ),
    "terms of its own": (
        lambda: replace(poisson()[0], problem=Extra(), weighting=INTERIOR),
        TypeError,
        "`Extra` has a method `terms` of its own",
    ),
    "points that move": (
        lambda: step(SelfAdaptive()),
        ValueError,
        r"`SelfAdaptive`.*same points.*`sampler` is `Uniform`.*`Fixed\(points\)`",
    ),
    "a product of which one": (
        lambda: step(Product(opx.Static(), ResidualAttention())),
        ValueError,
        "`sampler` is `Uniform`",
    ),
    "not pointwise": (
        lambda: step_coupled(NTK()),
        ValueError,
        r"one row of each set gave 'interior' a residual of shape \(2,\)",
    ),
    "not a row each": (
        lambda: step_coupled(INTERIOR),
        ValueError,
        r"points of 'interior'.*32 residuals.*got shape \(16, 1\)",
    ),
    "no such column": (
        lambda: step(Causal(("interior",), 1, (0, 1))),
        ValueError,
        "a column `time` = 1",
    ),
    "no names": (
        lambda: step_unnamed(GradNormBalance()),
        ValueError,
        r"made for terms \[\], but the loss has \['boundary', 'interior'\].*`terms`",
    ),
    "no numbers": (
        lambda: step_unnamed(SelfAdaptive(), ("interior", "boundary")),
        ValueError,
        r"number of points of '\w+', got shape \(\)\. Pass `terms=",
    ),
    "schedule": (
        lambda: Scheduled({"a": jnp.ones(2)}),
        ValueError,
        r"`schedules\['a'\]` must be a function of the step or a number",
    ),
    "names are no text": (
        lambda: Causal("interior", 0, (0, 1)),
        ValueError,
        "`names` must be a tuple.*got 'interior'",
    ),
    "none": (lambda: AugmentedLagrangian(()), ValueError, "`names` must be a tuple"),
    "twice": (lambda: SelfAdaptive(("a", "a")), ValueError, "different names"),
    "mask": (lambda: SelfAdaptive(mask=2), ValueError, "`mask` must be a function"),
    "optim": (lambda: GradNorm(optim="adam"), TypeError, "`optim` must be an `optax"),
    "no parts": (lambda: Product(), ValueError, "`parts` is empty"),
    "parts": (lambda: Product("ones"), TypeError, "`parts` must be instances.*'ones'"),
    "eps falls": (
        lambda: Causal(("a",), 0, (0, 1), eps=(1.0, 0.1)),
        ValueError,
        r"`eps` must grow along the tuple, got \(1.0, 0.1\)",
    ),
}
NUMBERS = [
    (GradNormBalance, {"decay": 1.1}),
    (GradNormBalance, {"every": 0}),
    (GradNormBalance, {"max_weight": 0}),
    (LearningRateAnnealing, {"reference": "a", "decay": -0.1}),
    (GradNorm, {"alpha": -1}),
    (GradNorm, {"min_weight": 0.0}),
    (NTK, {"max_points": 0}),
    (NTK, {"every": 1.5}),
    (ReLoBRaLo, {"lookback": 2}),
    (ReLoBRaLo, {"temperature": 0}),
    (SoftAdapt, {"beta": np.inf}),
    (ResidualAttention, {"gamma": 1.5}),
    (ResidualAttention, {"eta": np.nan}),
    (AugmentedLagrangian, {"names": ("a",), "mu": 0}),
    (AugmentedLagrangian, {"names": ("a",), "beta": 0.5}),
    (AugmentedLagrangian, {"names": ("a",), "mu": 3.0, "max_mu": 2.0}),
    (Causal, {"names": ("a",), "time": 0, "bounds": (0, 1), "eps": 0.0}),
    (Causal, {"names": ("a",), "time": 0, "bounds": (0, 1), "num_chunks": 0}),
    (Causal, {"names": ("a",), "bounds": (0, 1), "time": 0.5}),
]


@pytest.fixture
def _as_without_a_type_checker(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("_as_without_a_type_checker")
@pytest.mark.parametrize("case", BAD)
def test_bad_choices(case):
    call, error, match = BAD[case]
    with pytest.raises(error, match=match):
        call()


@pytest.mark.usefixtures("_as_without_a_type_checker")
@pytest.mark.parametrize("kind, options", NUMBERS)
def test_bad_numbers(kind, options):
    name, value = list(options.items())[-1]
    with pytest.raises(ValueError, match=f"`{name}` must be .*got {value!r}"):
        kind(**options)
    with pytest.raises(ValueError, match=r"`bounds\[1\]`"):
        Causal(("a",), 0, (1, 0))
