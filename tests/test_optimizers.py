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
        (((optax.adam(1e-3), 0),), "`plan`.*0"),
        (((optax.adam(1e-3), -2), (optax.adam(1e-3), 5)), "`plan`.*-2"),
        (((optax.adam(1e-3), True),), "`plan`.*True"),
        (((optax.adam(1e-3), 2.5),), "plan"),
        ((("adam", 5),), "plan"),
        (((optax.adam, 5),), "plan"),
        ((optax.adam(1e-3),), "plan"),
    ],
)
def test_bad_plans(plan, match):
    with pytest.raises((ValueError, TypeError), match=match):
        opx.phases(*plan)


@pytest.mark.parametrize(
    "function, x, length",
    [
        (rosenbrock, [-1.2, 1.0], 45),
        (rosenbrock, [0.5] * 8, 50),
        (quadratic, [1.0] * 20, 95),
        (quartic, [3.0], 12),
    ],
)
def test_ssbroyden_against_scipy(function, x, length):
    optim = opx.ssbroyden()
    state, losses, *_ = train(function, optim, start(optim, jnp.array(x)), length)
    best = scipy.optimize.minimize(
        jax.jit(jax.value_and_grad(function)),
        np.array(x),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 1000},
    )
    np.testing.assert_allclose(state.model["x"], best.x, rtol=1e-6, atol=1e-7)
    assert losses[-1] - min(best.fun, jnp.min(losses)) < 1e-10


def dual_update(inverse, s, y, first):
    """The Hessian after an update, from equations of Al-Baali (1998) and Urban et al.
    (2025) for the Hessian itself, where the library updates its inverse."""
    hessian, n = np.linalg.inv(inverse), len(s)
    ys, bs, hy = y @ s, hessian @ s, inverse @ y
    b, h = s @ bs / ys, y @ hy / ys
    a = b * h - 1
    c = np.sqrt(a / (1 + a))
    low = min(1, h * (1 - c))
    theta = max((low - 1) / a, min(1 / low, (1 - b) / b))
    sigma = 1 + theta * a
    if first:
        tau = h / sigma
    elif theta <= 0:
        tau = min(min(1, 1 / b) * sigma ** (-1 / (n - 1)), sigma)
    else:
        tau = min(1, 1 / b) * min(sigma ** (-1 / (n - 1)), 1 / theta)
    w = y / ys - bs / (s @ bs)
    middle = hessian - np.outer(bs, bs) / (s @ bs) + theta * (s @ bs) * np.outer(w, w)
    return tau * middle + np.outer(y, y) / ys


def test_ssbroyden_updates():
    optim, x = opx.ssbroyden(), jnp.array([-1.2, 1.0, 0.5, -0.4, 0.8, 1.3])
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
        hessian = dual_update(old.inverse, s, y, first=i == 0)
        expected = np.linalg.inv(hessian)
        np.testing.assert_allclose(new.inverse, expected, atol=1e-8 * scale)


def test_ssbroyden_leaves_out_what_is_no_secant():
    optim, x = opx.ssbroyden(), jnp.linspace(-1.0, 1.5, 5)
    moved = lambda x, batch: quartic(x + jnp.sum(batch))
    state, *_ = train(moved, optim, start(optim, x), 3)
    same, *_ = train(moved, optim, state, 1)
    assert state.opt_state.updates == 2 and same.opt_state.updates == 3
    # Another loss at the same point: the pair of points straddles the change.
    other, *_ = train(moved, optim, state, 1, jnp.ones(1))
    assert other.opt_state.updates == 2
    assert_same_bits(other.opt_state.inverse, state.opt_state.inverse)
    # From then on it is one loss again.
    later, *_ = train(moved, optim, other, 1, jnp.ones(1))
    assert later.opt_state.updates == 3
    # No positive curvature along the step, as after a line search that gave up.
    s, old = state.model["x"] - state.opt_state.point, state.opt_state.grad
    grad = {"x": old - s}
    with jax.numpy_dtype_promotion("standard"):
        _, after = optim.update(
            grad,
            state.opt_state,
            state.model,
            value=state.opt_state.reached,
            grad=grad,
            value_fn=lambda model: quartic(model["x"]),
        )
    assert after.updates == 2
    assert_same_bits(after.inverse, state.opt_state.inverse)


def test_ssbroyden_begins_again_where_it_would_climb():
    optim = opx.ssbroyden()
    moved = lambda x, batch: quartic(x + jnp.sum(batch))
    state, *_ = train(moved, optim, start(optim, jnp.zeros(3)), 3)
    for wrong in (-jnp.eye(3), jnp.full((3, 3), jnp.nan)):
        broken = replace(state, opt_state=replace(state.opt_state, inverse=wrong))
        # Another loss, so that no pair comes to the rescue.
        _, losses, _, states = train(moved, optim, broken, 3, jnp.ones(1))
        assert_same_bits(states.inverse[0], jnp.eye(3))
        np.testing.assert_array_equal(states.updates, [0, 1, 2])
        assert losses[0] > losses[1] > losses[2]


def test_ssbroyden_stays_at_a_minimum():
    optim = opx.ssbroyden()
    state, *_ = train(quartic, optim, start(optim, jnp.ones(3)), 5)
    assert_same_bits(state.model["x"], jnp.ones(3))
    assert all(np.all(np.isfinite(x)) for x in bits(state.opt_state))


def test_ssbroyden_of_many_is_that_of_each():
    optim = opx.ssbroyden()
    starts = jr.normal(jr.key(0), (3, 4))
    run = lambda x: train(rosenbrock, optim, start(optim, x), 8)[1:3]
    losses, models = eqx.filter_vmap(run)(starts)
    for i in range(3):
        loss, model = run(starts[i])
        np.testing.assert_allclose(losses[i], loss, rtol=1e-8)
        np.testing.assert_allclose(models["x"][i], model["x"], rtol=1e-8)


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
