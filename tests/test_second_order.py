"""Optimizers that look at residuals or at the Hessian, and those with a basis."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import opifex as opx
from opifex._least_squares import LeastSquares
from opifex._objective import Objective
from opifex._optimizer.nncg import approximate, precondition
from opifex._problem.composed import Composed
from opifex._weighting.augmented_lagrangian import AugmentedLagrangian
from opifex._weighting.residual_attention import ResidualAttention

from .helpers import mlp, NUM_POINTS, Poisson, SAMPLERS


TIMES = jnp.linspace(0, 4, 15)
RATES = jnp.array([1.7, 0.8, 0.4])
NOISE = 0.05 * jnp.sin(37 * TIMES)


@opx.SumOfSquares
def decay(params):
    """Misfit of an exponential to noisy data, which vanishes nowhere."""
    a, b, c = params["a"][0], params["a"][1], params["c"]
    model = lambda a, b, c: a * jnp.exp(-b * TIMES) + c
    return model(a, b, c) - model(*RATES) - NOISE


def start_of_decay():
    return {"a": jnp.array([0.6, 2.5]), "c": jnp.array(0.0)}


def descend(optim, squares, params, length):
    """The parameters and the states before every step and after the last."""

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(squares)(params)
        more = {"value": value, "grad": grad, "value_fn": squares}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = optim.update(grad, state, params, **more)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), (params, state)

    start = (params, optim.init(params))
    path = jax.jit(lambda start: jax.lax.scan(step, start, length=length)[1])(start)
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), start, path)


def flat(params):
    return np.asarray(jax.vmap(lambda p: ravel_pytree(p)[0])(params))


def of_decay(x):
    x = jnp.asarray(x)
    return np.asarray(decay.residuals({"a": x[:2], "c": x[2]}))


def test_the_least_squares_of_scipy():
    best = scipy.optimize.least_squares(of_decay, [0.6, 2.5, 0.0], xtol=1e-14)
    for optim in (
        opx.levenberg_marquardt(),
        opx.levenberg_marquardt(method="iterative"),
        opx.engd(),
    ):
        points = flat(descend(optim, decay, start_of_decay(), 25)[0])
        np.testing.assert_allclose(points[-1], best.x, rtol=1e-6)


def test_levenberg_marquardt_by_hand():
    """Algorithm 3.16 of Madsen et al., where every trial is an iteration."""
    optim = opx.levenberg_marquardt(damping=1e-6, max_trials=30)
    params = {"x": jnp.array([-1.2, 1.0])}
    valley = opx.SumOfSquares(
        lambda p: jnp.stack([10 * (p["x"][1] - p["x"][0] ** 2), 1 - p["x"][0]])
    )
    points, states = descend(optim, valley, params, 12)
    x, tried = np.array([-1.2, 1.0]), 0
    residuals = lambda x: np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])
    damping = None
    for i in range(12):
        r, jac = residuals(x), np.array([[-20 * x[0], 10], [-1, 0]])
        slope, growth = jac.T @ r, 2
        if damping is None:
            along = jac @ slope
            damping = 1e-6 * (along @ along) / (slope @ slope)
        while True:
            tried += 1
            step = -np.linalg.solve(jac.T @ jac + damping * np.eye(2), slope)
            foretold = r @ r - np.sum((r + jac @ step) ** 2)
            gain = (r @ r - np.sum(residuals(x + step) ** 2)) / foretold
            if gain > 0:
                damping *= max(1 / 3, 1 - (2 * gain - 1) ** 3)
                break
            damping, growth = damping * growth, 2 * growth
        x = x + step
        np.testing.assert_allclose(points["x"][i + 1], x, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(states.damping[i + 1], damping, rtol=1e-7)
    assert tried > 12


@pytest.mark.parametrize("num_params", [3, 40])
def test_a_natural_gradient_is_a_damped_gauss_newton_step(num_params):
    basis = jr.normal(jr.key(0), (15, num_params))
    bent = opx.SumOfSquares(lambda p: jnp.tanh(basis @ p["x"]) + basis[:, 0] - 0.3)
    params = {"x": 0.1 * jr.normal(jr.key(1), (num_params,))}
    r, jac = np.asarray(bent.residuals(params)), np.asarray(bent.jacobian(params))
    gauss_newton = -np.linalg.solve(jac.T @ jac + 1e-4 * np.eye(num_params), jac.T @ r)
    steps = []
    for form in ("parameters", "residuals", "auto"):
        points, states = descend(opx.engd(damping=1e-4, form=form), bent, params, 1)
        steps.append(points["x"][1] - points["x"][0])
        length = float(states.length[1])
        np.testing.assert_allclose(steps[-1], length * gauss_newton, rtol=1e-8)
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-8, atol=1e-10)
    # The length is the first lowest of the powers of a half.
    losses = [
        float(bent({"x": params["x"] + 0.5**k * gauss_newton})) for k in range(12)
    ]
    first = next(k for k in range(11) if losses[k] < losses[k + 1])
    assert length == 0.5**first and losses[first] < float(bent(params))


class Leaning(opx.AbstractResidualProblem):
    """A residual that looks at its own point, and one that looks at all."""

    def residuals(self, model, batch):
        own = jax.vmap(model)(batch["interior"])[:, 0]
        wave = jax.lax.complex(jnp.cos(own), jnp.sin(2 * own))
        ends = jax.vmap(model)(batch["boundary"])[:, 0]
        lean = own - jnp.mean(own)
        return {"interior": lean, "interior/wave": wave, "boundary": ends}


def predict(model, inputs):
    return jax.vmap(model)(inputs)


BATCH = SAMPLERS["fixed"]().points
HEAVY = BATCH | {"interior": opx.Weighted(BATCH["interior"], jnp.linspace(0, 2, 16))}
ROWS = opx.Pairs(BATCH["interior"], jnp.cos(BATCH["interior"]), jnp.arange(16) < 13)
FIT = {"apply": opx.pointwise, "predict": predict}
OTHER = Composed(**FIT, custom={"c": lambda see, x, y: see(x)[:, 0]})
SQUARES = {
    "weights": (Poisson(), opx.Static({"boundary": 10.0}), HEAVY),
    "attention": (Poisson(), ResidualAttention(("interior",)), BATCH),
    "leaning": (Leaning(), opx.Static(), BATCH),
    "pairs": (
        Composed(**FIT, weights={"data": 2.0}),
        opx.Static({"data": 3.0}),
        {"data": ROWS, "boundary": opx.Pairs(BATCH["boundary"], BATCH["boundary"])},
    ),
}


def objective_of(problem, weighting, batch, accumulate=1):
    model, key = mlp(jr.key(3), width=4), jr.key(1)
    shape = lambda n: jax.ShapeDtypeStruct((n,), jnp.result_type(float))
    state = weighting.init({name: shape(n) for name, n in NUM_POINTS.items()})
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    args = (problem, weighting, state, rest, batch, key, opx.Precision(), accumulate)
    return Objective(*args, False), params


@pytest.mark.parametrize("name", SQUARES)
def test_the_squares_of_the_residuals_sum_to_the_loss(name):
    objective, params = objective_of(*SQUARES[name])

    @eqx.filter_jit
    def look(params):
        value, seen, grads = objective.value_and_grad(params)
        squares = LeastSquares(objective.settled(seen))
        slow = jax.jacrev(squares.residuals)(params)
        slow = jax.vmap(lambda t: ravel_pytree(t)[0])(slow)
        return value, grads, squares.residuals(params), squares.jacobian(params), slow

    value, grads, r, jac, slow = look(params)
    np.testing.assert_allclose(jnp.sum(r**2), value, rtol=1e-13)
    np.testing.assert_allclose(jac, slow, rtol=1e-10, atol=1e-12)
    slope = ravel_pytree(grads)[0]
    np.testing.assert_allclose(2 * jac.T @ r, slope, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "problem, weighting, batch, accumulate, message",
    [
        (opx.Supervised(opx.mae), opx.Static(), ROWS, 1, "`loss` is .*mae"),
        (OTHER, opx.Static(), {"data": ROWS}, 1, r"terms \['c'\]"),
        (Poisson(), opx.Static(), BATCH, 2, "`accumulate` = 2"),
        (Poisson(), AugmentedLagrangian(("boundary",)), BATCH, 1, "multipliers"),
    ],
)
def test_a_loss_that_is_no_sum_of_squares(
    problem, weighting, batch, accumulate, message
):
    objective, params = objective_of(problem, weighting, batch, accumulate)
    _, seen, _ = jax.eval_shape(objective.value_and_grad, params)
    squares = LeastSquares(objective.settled(seen))
    with pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(squares.residuals, params)


def test_nystrom():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    values = np.array([9.0, 4.0, 1.0] + 9 * [0.0])
    low = jnp.asarray(basis @ np.diag(values) @ basis.T)
    like, key, x = jnp.zeros((12, 5)), jr.key(0), jnp.arange(12.0)
    near = approximate(lambda v: low @ v, like, key)
    np.testing.assert_allclose(near.values, [9, 4, 1, 0, 0], atol=1e-12)
    # Of a matrix that it sees whole, the preconditioner is the inverse times `damping`.
    exact = 0.1 * jnp.linalg.solve(low + 0.1 * jnp.eye(12), x)
    np.testing.assert_allclose(precondition(near, 0.1, x), exact, rtol=1e-9)
    # Negative curvature is passed over, and nothing becomes of it.
    saddle = low - 2 * jnp.outer(basis[:, 5], basis[:, 5])
    near = approximate(lambda v: saddle @ v, like, key)
    assert np.all(np.isfinite(near.vectors)) and np.all(near.values >= 0)


def test_nncg():
    basis = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)))
    quadratic = opx.SumOfSquares(lambda p: basis @ p["x"] - 1)
    optim = opx.nncg(damping=1e-9, rank=4, every=3)
    points, states = descend(optim, quadratic, {"x": jnp.zeros(8)}, 2)
    # One step of Newton's method is enough, from wherever.
    best = np.linalg.solve(basis, np.ones(8))
    np.testing.assert_allclose(points["x"][1], best, rtol=1e-6)
    assert states.length[1] == 1
    valley = lambda p: jnp.sum(100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2)
    points, states = descend(opx.nncg(rank=2), valley, jnp.array([-1.2, 1.0]), 40)
    np.testing.assert_allclose(points[-1], 1, rtol=1e-9)
    losses = jax.vmap(valley)(points)
    assert np.all(losses[1:] <= losses[:-1]) and np.any(states.length[1:] < 1)


def soap_by_hand(grads, every, rate, b1, b2, eps, decay, x):
    """Algorithms 3 and 4 of Vyas et al., with the exceptions of their own program: the
    first gradient only finds the bases, and Adam's corrections count from the next."""
    first = grads[0]
    left, right = (1 - b2) * first @ first.T, (1 - b2) * first.T @ first
    of_left, of_right = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
    momentum, second = np.zeros_like(first), np.zeros_like(first)
    points = [x - rate * decay * x]
    for t, grad in enumerate(grads[1:], 1):
        x, turned = points[-1], of_left.T @ grad @ of_right
        momentum = b1 * momentum + (1 - b1) * grad
        second = b2 * second + (1 - b2) * turned**2
        ratio = of_left.T @ momentum @ of_right / (1 - b1**t)
        ratio = ratio / (np.sqrt(second / (1 - b2**t)) + eps)
        points.append(x - rate * (of_left @ ratio @ of_right.T + decay * x))
        left = b2 * left + (1 - b2) * grad @ grad.T
        right = b2 * right + (1 - b2) * grad.T @ grad
        if t % every == 0:
            of_left = np.linalg.qr(left @ of_left)[0]
            of_right = np.linalg.qr(right @ of_right)[0]
    return np.stack(points)


def test_soap_by_hand():
    grads, x = jr.normal(jr.key(0), (8, 4, 3)), jr.normal(jr.key(1), (4, 3))
    optim = opx.soap(0.1, 0.8, 0.9, 1e-3, weight_decay=0.2, every=3)

    def step(carry, grad):
        params, state = carry
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optim.update(grad, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), params

    params = {
        "w": x,
        "b": x[0],
        "z": jax.lax.complex(x[0], x[1]),
        "long": jnp.zeros((1, 2)),
    }
    each = {
        "w": grads,
        "b": grads[:, 0],
        "z": jax.lax.complex(grads[:, 0], grads[:, 1]),
        "long": grads[:, :1, :2],
    }
    run = jax.jit(lambda p: jax.lax.scan(step, (p, optim.init(p)), each)[1])
    points = run(params)
    numbers = (0.1, 0.8, 0.9, 1e-3, 0.2)
    by_hand = soap_by_hand(np.asarray(grads), 3, *numbers, np.asarray(x))
    np.testing.assert_allclose(points["w"], by_hand, rtol=1e-9, atol=1e-11)
    # Without a basis it is Adam, which here begins at the second gradient.
    for name in ("b", "z"):
        grad, p = np.asarray(each[name][1]), 0.98 * np.asarray(params[name])
        ratio = grad / (np.abs(grad) + 1e-3)
        expected = p - 0.1 * (ratio + 0.2 * p)
        np.testing.assert_allclose(points[name][1], expected, rtol=1e-12)
    state = optim.init(params)[0]
    shapes = lambda name: [None if q is None else q.shape for q in state.bases[name]]
    assert shapes("w") == [(4, 4), (3, 3)] and shapes("long") == [None, (2, 2)]
    assert shapes("b") == shapes("z") == [None]
    assert opx.scale_by_soap(max_size=3).init(params).bases["w"][0] is None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: opx.levenberg_marquardt(method="dens"), "Did you mean 'dense'"),
        (lambda: opx.levenberg_marquardt(damping=0.0), "`damping` must be positive"),
        (lambda: opx.levenberg_marquardt(max_trials=0), "`max_trials`.*0"),
        (lambda: opx.engd(form="woodbury"), "Unknown name 'woodbury' in `form`"),
        (lambda: opx.engd(damping=-1.0), "`damping` must be positive, got -1.0"),
        (lambda: opx.nncg(rank=0), "`rank`.*0"),
        (lambda: opx.nncg(cg_tolerance=0.0), "`cg_tolerance` must be positive"),
        (lambda: opx.soap(1e-3, every=0), "`every`.*0"),
        (lambda: opx.soap(1e-3, b2=1.0), "`b2` must be at least 0 and below 1"),
        (lambda: opx.lbfgs(0), "`memory_size`.*0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SECOND_ORDER = {
    "bfgs": opx.bfgs,
    "engd": opx.engd,
    "lbfgs": opx.lbfgs,
    "levenberg_marquardt": opx.levenberg_marquardt,
    "nncg": opx.nncg,
    "ssbfgs": opx.ssbfgs,
    "ssbroyden": opx.ssbroyden,
}


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_asks_for_float64(name):
    make = SECOND_ORDER[name]
    small = {"w": jnp.ones(3, jnp.float32)}
    with pytest.raises(ValueError, match=f"`{name}` needs float64.*Make the model in"):
        make().init(small)
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=f"`{name}` needs.*jax_enable_x64"),
    ):
        make().init(small)
    assert make(single_precision=True).init(small)
    with pytest.raises(ValueError, match=f"`{name}` trains real parameters, got compl"):
        make().init({"w": jnp.ones(3, complex)})


def test_what_memory_cannot_hold():
    huge = jax.ShapeDtypeStruct((10**7,), jnp.result_type(float))
    for make in (opx.bfgs, opx.ssbfgs, opx.ssbroyden):
        with pytest.raises(ValueError, match="would need .* GiB.*`lbfgs"):
            jax.eval_shape(make().init, huge)
    with pytest.raises(ValueError, match="`nncg` would need .*smaller `rank`"):
        jax.eval_shape(opx.nncg(rank=10**5).init, huge)
    norm = opx.SumOfSquares(lambda x: x)

    def one_step(optim):
        more = {"value": jnp.ones(()), "value_fn": norm}
        step = lambda x, state: optim.update(x, state, x, **more)[0]
        return jax.eval_shape(step, huge, jax.eval_shape(optim.init, huge))

    for optim in (opx.levenberg_marquardt(method="dense"), opx.engd()):
        with pytest.raises(ValueError, match='would need .*method="iterative"'):
            one_step(optim)
    # Which for lack of a matrix has no such bound.
    assert one_step(opx.levenberg_marquardt()).shape == huge.shape


def test_residuals_are_needed():
    params = {"w": jnp.ones(3)}
    for optim, name in ((opx.engd(), "engd"), (opx.nncg(), "nncg")):
        with pytest.raises(TypeError, match=rf"`{name}`.*\['value"):
            optim.update(params, optim.init(params), params)
    optim = opx.levenberg_marquardt()
    more = {"value": jnp.ones(()), "value_fn": lambda p: jnp.sum(p["w"] ** 2)}
    with pytest.raises(TypeError, match="Give it `SumOfSquares"):
        optim.update(params, optim.init(params), params, **more)
