from contextlib import nullcontext
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
import scipy.optimize

import opifex as opx
from opifex._optimizer.factory import OPTIMIZERS
from opifex._optimizer.plans import planned_optimizer, PLANS as BY_NAME

from .helpers import assert_same_bits, bits


class Minimise(opx.AbstractProblem):
    function: object

    def terms(self, model, batch, key):
        return {"f": self.function(model["x"], batch)}, opx.Aux()


def rosenbrock(x, batch=None):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quadratic(x, batch=None):
    """Condition number a million, in a basis that is not that of the parameters."""
    size = x.shape[0]
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    y = jnp.asarray(basis, x.dtype) @ x
    curvature = jnp.logspace(0, 6, size, dtype=x.dtype)
    return 0.5 * jnp.sum(curvature * y**2) - jnp.sum(y)


def quartic(x, batch=None):
    return jnp.sum((x - 1) ** 4 + (x - 1) ** 2)


def start(optim, x):
    points, key = opx.Fixed(jnp.zeros(1)), jr.key(0)
    return opx.init(optim, points, opx.NoRecovery(), {"x": x}, key=key)


def train(function, optim, state, length, batch=None):
    """The last state, the losses, and the state after every step."""
    problem, batch = Minimise(function), jnp.zeros(1) if batch is None else batch

    def step(state):
        state, info = opx.train_step(problem, optim, state, batch)
        return state, (info.loss, state.model, state.opt_state)

    run = eqx.filter_jit(lambda state: opx.filter_scan(step, state, length=length))
    state, (losses, models, opt_states) = run(state)
    return state, losses, models, opt_states


PLANS = {
    "first_order": (
        (lambda: optax.adam(0.1), 3),
        (lambda: optax.sgd(1e-3, momentum=0.9), 2),
        # Its state holds the parameters that it begins at, and a schedule.
        (lambda: optax.contrib.schedule_free_sgd(1e-3, warmup_steps=2), 4),
    ),
    "second_order": (
        (lambda: optax.adam(0.1), 3),
        (lambda: opx.ssbroyden(), 4),
        (lambda: optax.sgd(optax.linear_schedule(1e-3, 0.0, 5)), 1),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_phases_are_their_optimizers_one_after_another(name):
    plan = [(make(), steps) for make, steps in PLANS[name]]
    optim, x = opx.phases(*plan), jnp.array([-1.2, 1.0, 0.3])
    total = 12  # the last phase goes on beyond its steps

    def one_step(optim):
        @jax.jit
        def step(params, state):
            value, grad = jax.value_and_grad(rosenbrock)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optax.with_extra_args_support(optim).update(
                    grad, state, params, value=value, grad=grad, value_fn=rosenbrock
                )
            return optax.apply_updates(params, updates), state

        return step

    params, points, left = x, [], total
    for i, (inner, steps) in enumerate(plan):
        state, step = inner.init(params), one_step(inner)
        for _ in range(left if i == len(plan) - 1 else steps):
            params, state = step(params, state)
            points.append(params)
            left -= 1
    assert len(points) == total

    state, _, models, opt_states = train(rosenbrock, optim, start(optim, x), total)
    np.testing.assert_allclose(models["x"], jnp.stack(points), rtol=1e-9)
    np.testing.assert_array_equal(opt_states.count, np.arange(1, total + 1))

    # On disk and back after every step, which ends in the middle of each phase.
    step, params, state = one_step(optim), x, optim.init(x)
    for point in points:
        params, state = step(params, state)
        state = jtu.tree_map(jnp.asarray, jtu.tree_map(np.array, state))
        np.testing.assert_allclose(params, point, rtol=1e-9)


@pytest.mark.parametrize(
    "plan, match",
    [
        ((), "`plan` is empty"),
        (([],), "`plan` is empty"),
        (((optax.adam(1e-3), 0),), "`plan`.*0"),
        (((optax.adam(1e-3), -2), (optax.adam(1e-3), 5)), "`plan`.*-2"),
        (((optax.adam(1e-3), True),), "`plan`.*True"),
        (((optax.adam(1e-3), 2.5),), "plan"),
        ((("adam", 5),), "plan"),
        (((optax.adam, 5),), "plan"),
        ((optax.adam(1e-3),), r"pairs, got GradientTransformation.*Write"),
        ((5,), r"pairs, got 5.*Write"),
    ],
)
def test_bad_plans(plan, match):
    with pytest.raises((ValueError, TypeError), match=match):
        opx.phases(*plan)


def test_the_sum_of_a_plan():
    plan = [(optax.adam(1e-3), 3), (opx.ssbroyden(), 4)]
    with pytest.raises(ValueError, match=r"\[3, 4\].*7, but `total_steps` is 8"):
        opx.phases(plan, total_steps=8)
    for optim in (opx.phases(plan, total_steps=7), opx.phases(*plan)):
        assert len(optim.init(jnp.ones(2)).inner) == 2


def bowl(**kwargs):
    """A recipe of two phases, whose second has the last word after five steps."""
    optim = opx.phases((optax.adam(0.1), 5), (opx.ssbroyden(), 100))
    options = {"sampler": opx.Fixed(jnp.zeros(1)), "steps": 4} | kwargs
    recipe = opx.Recipe(Minimise(rosenbrock), optim, **options)
    return recipe, recipe.init({"x": jnp.array([-1.2, 1.0, 0.3])}, key=jr.key(0))


def test_a_run_that_is_killed_and_one_that_meets_nan():
    recipe, state = bowl()
    whole = opx.fit(recipe, state, num_chunks=7)
    half = opx.fit(recipe, state, num_chunks=3)  # in the middle of SSBroyden
    assert half.opt_state.count == 12 and half.opt_state.inner[1].updates > 0
    arrays, static = eqx.partition(half, eqx.is_array)
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    put = lambda x: np.asarray(jr.key_data(x)) if is_key(x) else np.asarray(x)
    get = lambda x, like: jr.wrap_key_data(x) if is_key(like) else jnp.asarray(x)
    saved = jtu.tree_map(put, arrays)
    again = eqx.combine(jtu.tree_map(get, saved, arrays), static)
    assert_same_bits(opx.fit(recipe, again, num_chunks=4), whole)
    # Adam took its steps, and no more.
    assert whole.opt_state.inner[0][0].count == 5
    # The parameters turn into NaN: back to the last that were sound, and down from
    # there. Steps that were not kept are not counted.
    broken = replace(half, model={"x": jnp.full(3, jnp.nan)})
    healed = opx.fit(recipe, broken, num_chunks=40)
    report = opx.fault_report(healed)
    assert report["nonfinite_loss"] == 2 and report["rolled_back"] == 1
    assert healed.step - healed.opt_state.count >= 2
    np.testing.assert_allclose(healed.model["x"], 1, rtol=1e-5)


def weighed(x, batch):
    return quartic(x) * jnp.mean(batch.targets)


class Noisy(Minimise):
    def terms(self, model, batch, key):
        value = self.function(model["x"], batch) * (1 + 0.1 * jr.normal(key))
        return {"f": value}, opx.Aux()


DATA = (jnp.ones((6, 1)), jnp.ones(6))


@pytest.mark.parametrize(
    "optim, problem, batch_size, cause",
    [
        (opx.ssbroyden(), Minimise(weighed), 4, "`Minibatch` hands out"),
        (opx.lbfgs(), Noisy(weighed), 6, "`Noisy` draws random numbers"),
        (
            opx.phases((optax.adam(0.1), 2), (opx.nncg(), 3)),
            Minimise(weighed),
            4,
            "Min",
        ),
        (opx.ssbroyden(), Minimise(weighed), 6, None),
        (opx.ssbroyden(), Minimise(quartic), 4, None),
        (optax.adam(1e-3), Noisy(weighed), 4, None),
        (opx.engd(), Noisy(weighed), 4, None),
    ],
)
def test_a_loss_that_changes_at_every_step(optim, problem, batch_size, cause):
    recipe = opx.Recipe(problem, optim, opx.Minibatch(*DATA, batch_size))
    expected = pytest.warns(UserWarning, match=cause) if cause else nullcontext()
    with expected:
        recipe.init({"x": jnp.ones(2)}, key=jr.key(0))


def test_plans_by_name():
    assert {"adam+nncg", "soap+ssbroyden", *OPTIMIZERS} <= set(BY_NAME)
    state = planned_optimizer("soap+ssbfgs", 800).init(jnp.ones(3))
    assert state.inner[0][0].bases and state.inner[1].inverse.shape == (3, 3)
    with pytest.raises(ValueError, match="'adam.ssbroydn'.*Did you mean 'adam.ssbroy"):
        planned_optimizer("adam+ssbroydn", 10)
    single = jnp.ones(3, jnp.float32)
    with pytest.raises(ValueError, match="`bfgs` needs float64"):
        BY_NAME["adam+bfgs"](10).init(single)
    assert BY_NAME["adam+bfgs"](10, single_precision=True).init(single)


QUASI_NEWTON = {"bfgs": opx.bfgs, "ssbfgs": opx.ssbfgs, "ssbroyden": opx.ssbroyden}


@pytest.mark.parametrize(
    "name, function, x, length",
    [
        ("bfgs", rosenbrock, [-1.2, 1.0], 45),
        ("ssbfgs", rosenbrock, [0.5] * 8, 60),
        ("ssbroyden", rosenbrock, [-1.2, 1.0], 45),
        ("ssbroyden", quadratic, [1.0] * 20, 95),
        ("ssbroyden", quartic, [3.0], 12),
    ],
)
def test_quasi_newton_against_scipy(name, function, x, length):
    optim, x = QUASI_NEWTON[name](), jnp.array(x)
    state, losses, models, _ = train(function, optim, start(optim, x), length)
    best = scipy.optimize.minimize(
        jax.jit(jax.value_and_grad(function)),
        np.array(x),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 1000},
    )
    np.testing.assert_allclose(state.model["x"], best.x, rtol=1e-6, atol=3e-7)
    assert losses[-1] - min(best.fun, jnp.min(losses)) < 1e-10
    if function is rosenbrock and len(x) == 2:
        # Superlinear: each of the last steps gains more digits than the one before.
        errors = np.linalg.norm(models["x"] - 1, axis=1)
        errors = errors[(errors < 0.03) & (errors > 1e-11)]
        ratios = errors[1:] / errors[:-1]
        assert len(errors) < 9 and ratios[-1] < 0.02 < 0.1 < ratios[0]


@pytest.mark.parametrize("name", QUASI_NEWTON)
def test_quasi_newton_ends_in_n_steps(name):
    """On a quadratic function of n variables, with exact line searches (L. C. W. Dixon,
    Mathematical Programming 2, 1972)."""
    optim, size = QUASI_NEWTON[name](), 6
    root = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)))
    hessian = root @ root.T + jnp.eye(size)
    bowl = lambda x: 0.5 * x @ hessian @ x

    def step(carry, _):
        x, state = carry
        more = {"value": bowl(x), "grad": hessian @ x, "value_fn": bowl}
        with jax.numpy_dtype_promotion("standard"):
            _, state = optim.update(hessian @ x, state, x, **more)
        grad, d = hessian @ x, state.direction
        return (x - (grad @ d) / (d @ hessian @ d) * d, state), jnp.linalg.norm(grad)

    begin = (jnp.ones(size), optim.init(jnp.ones(size)))
    run = jax.jit(lambda begin: jax.lax.scan(step, begin, length=size + 1))
    (_, state), norms = run(begin)
    assert norms[size] < 1e-10 * norms[0] and norms[size - 1] > 1e-4 * norms[0]
    if name == "bfgs":
        # By then it knows the Hessian.
        np.testing.assert_allclose(state.inverse @ hessian, np.eye(size), atol=1e-5)


def dual_update(name, inverse, s, y, first):
    """The Hessian after an update, from equations of Al-Baali (1998) and Urban et al.
    (2025) for the Hessian itself, where the library updates its inverse."""
    hessian, n = np.linalg.inv(inverse), len(s)
    ys, bs, hy = y @ s, hessian @ s, inverse @ y
    b, h = s @ bs / ys, y @ hy / ys
    a = b * h - 1
    c = np.sqrt(a / (1 + a))
    low = min(1, h * (1 - c))
    theta = max((low - 1) / a, min(1 / low, (1 - b) / b))
    theta = theta if name == "ssbroyden" else 0.0
    sigma = 1 + theta * a
    if first:
        tau = h / sigma
    elif name == "bfgs":
        tau = 1.0
    elif name == "ssbfgs":
        tau = min(1, 1 / b)
    elif theta <= 0:
        tau = min(min(1, 1 / b) * sigma ** (-1 / (n - 1)), sigma)
    else:
        tau = min(1, 1 / b) * min(sigma ** (-1 / (n - 1)), 1 / theta)
    w = y / ys - bs / (s @ bs)
    middle = hessian - np.outer(bs, bs) / (s @ bs) + theta * (s @ bs) * np.outer(w, w)
    return tau * middle + np.outer(y, y) / ys


@pytest.mark.parametrize("name", QUASI_NEWTON)
def test_quasi_newton_updates(name):
    optim, x = QUASI_NEWTON[name](), jnp.array([-1.2, 1.0, 0.5, -0.4, 0.8, 1.3])
    *_, models, states = train(rosenbrock, optim, start(optim, x), 30)
    at = lambda i: jtu.tree_map(lambda leaf: np.asarray(leaf[i]), states)
    assert at(0).updates == 0
    np.testing.assert_array_equal(at(0).inverse, np.eye(6))
    np.testing.assert_array_equal(at(0).point, x)
    for i in range(29):
        old, new = at(i), at(i + 1)
        assert new.updates == i + 1
        np.testing.assert_array_equal(new.point, models["x"][i])
        s, y = new.point - old.point, new.grad - old.grad
        scale = np.abs(new.inverse).max()
        np.testing.assert_allclose(new.inverse @ y, s, atol=1e-10 * scale)
        np.testing.assert_allclose(new.inverse, new.inverse.T, atol=1e-10 * scale)
        assert np.linalg.eigvalsh(new.inverse).min() > 0
        np.testing.assert_allclose(new.direction, -new.inverse @ new.grad, rtol=1e-8)
        hessian = dual_update(name, old.inverse, s, y, first=i == 0)
        expected = np.linalg.inv(hessian)
        np.testing.assert_allclose(new.inverse, expected, atol=1e-8 * scale)


def shifted(x, batch):
    return quartic(x + jnp.sum(batch))


@eqx.filter_jit
def one_step(state, shift):
    """A step of SSBroyden on five variables."""
    return opx.train_step(Minimise(shifted), opx.ssbroyden(), state, shift[None])


def steps(state, num, shift=0.0):
    losses = []
    for _ in range(num):
        state, info = one_step(state, jnp.array(shift))
        losses.append(float(info.loss))
    return state, losses


def test_ssbroyden_leaves_out_what_is_no_secant():
    state, _ = steps(start(opx.ssbroyden(), jnp.linspace(-1.0, 1.5, 5)), 3)
    same, _ = steps(state, 1)
    assert state.opt_state.updates == 2 and same.opt_state.updates == 3
    # Another loss at the same point: the pair of points straddles the change.
    other, _ = steps(state, 1, 1.0)
    assert other.opt_state.updates == 2
    assert_same_bits(other.opt_state.inverse, state.opt_state.inverse)
    # From then on it is one loss again.
    assert steps(other, 1, 1.0)[0].opt_state.updates == 3
    # No positive curvature along the step, as after a line search that gave up: the
    # gradient before was that of another one.
    s = state.model["x"] - state.opt_state.point
    gradient = jax.grad(quartic)(state.model["x"])
    mild = replace(state, opt_state=replace(state.opt_state, grad=gradient + s))
    after, _ = steps(mild, 1)
    assert after.opt_state.updates == 2
    assert_same_bits(after.opt_state.inverse, state.opt_state.inverse)


def test_ssbroyden_begins_again_where_it_would_climb():
    state, _ = steps(start(opx.ssbroyden(), jnp.zeros(5)), 3)
    lower = jnp.eye(5).at[0, 0].set(-1)  # uphill along one axis
    for wrong in (-jnp.eye(5), lower, jnp.full((5, 5), jnp.nan)):
        broken = replace(state, opt_state=replace(state.opt_state, inverse=wrong))
        # Another loss, so that no pair comes to the rescue.
        broken, losses = steps(broken, 1, 1.0)
        assert_same_bits(broken.opt_state.inverse, jnp.eye(5))
        for num in (1, 2):
            assert broken.opt_state.updates == num - 1
            broken, more = steps(broken, 1, 1.0)
            losses += more
        assert losses[0] > losses[1] > losses[2]
    # Downhill, but so far that no step of the search is short enough.
    far = replace(state.opt_state, inverse=1e40 * jnp.eye(5))
    stuck, losses = steps(replace(state, opt_state=far), 3, 1.0)
    assert losses[0] == losses[1] > losses[2]
    assert stuck.opt_state.updates == 1


def test_points_that_change_leave_the_inverse_positive():
    state, kept = start(opx.ssbroyden(), jnp.linspace(-1.0, 1.5, 5)), 0
    for i in range(24):
        state, _ = steps(state, 1, 0.3 * (i // 4))
        inverse = np.asarray(state.opt_state.inverse)
        np.testing.assert_array_equal(inverse, inverse.T)
        assert np.linalg.eigvalsh(inverse).min() > 0
        kept += int(state.opt_state.updates > 2)
    assert kept > 15  # it was not the identity all along


def test_ssbroyden_stays_at_a_minimum():
    state, _ = steps(start(opx.ssbroyden(), jnp.ones(5)), 5)
    assert_same_bits(state.model["x"], jnp.ones(5))
    assert all(np.all(np.isfinite(x)) for x in bits(state.opt_state))


def test_ssbroyden_of_many_is_that_of_each():
    optim = opx.ssbroyden()
    run = lambda x: train(rosenbrock, optim, start(optim, x), 8)[1:3]
    starts = jr.normal(jr.key(0), (8, 4))
    losses, models = opx.ensemble(run, starts, how="map")
    loss, model = run(starts[5])
    np.testing.assert_allclose(losses[5], loss, rtol=1e-8)
    np.testing.assert_allclose(models["x"][5], model["x"], rtol=1e-8)
    together = opx.ensemble(run, starts, how="vmap")
    np.testing.assert_allclose(together[0], losses, rtol=1e-8)
    np.testing.assert_allclose(together[1]["x"], models["x"], rtol=1e-8)


def test_ssbroyden_in_single_precision():
    optim = opx.ssbroyden(single_precision=True)
    x = jnp.array([-1.2, 1.0, 0.5], jnp.float32)
    state, *_ = train(rosenbrock, optim, start(optim, x), 60)
    for name in ("inverse", "point", "grad", "direction"):
        assert getattr(state.opt_state, name).dtype == jnp.float32
    np.testing.assert_allclose(state.model["x"], 1, rtol=1e-3)


def test_ssbroyden_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="real parameters, got complex128"):
        opx.ssbroyden().init({"w": jnp.ones(3, complex)})
    with pytest.raises(TypeError, match=r"\['value', 'value_fn'\]"):
        params = {"w": jnp.ones(3)}
        optim = opx.ssbroyden()
        optim.update(params, optim.init(params), params, grad=params)
    with pytest.raises(ValueError, match="`max_linesearch_steps`.*0"):
        opx.ssbroyden(max_linesearch_steps=0)
