import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from scipy.integrate import quad

import opifex as opx
from opifex import zoo
from opifex._validation import observe
from opifex.neural import MLP
from opifex.zoo.best import Best, held_out
from opifex.zoo.judge import save_solution
from opifex.zoo.panels import draw_field
from opifex.zoo.problems.inverse import burgers_inverse
from opifex.zoo.recipe import BENCHMARKS
from opifex.zoo.references import cole_hopf, cole_hopf_trapezoid, NU
from opifex.zoo.run import Config, run


def exact(x, t, nu):
    """Cole-Hopf by adaptive quadrature, written from the formula."""
    scale = lambda y: np.exp(
        (-np.cos(np.pi * y) - 1) / (2 * np.pi * nu) - (x - y) ** 2 / (4 * nu * t)
    )
    options = {"limit": 500, "epsabs": 0, "epsrel": 1e-10, "points": [-1, 0, 1]}
    numerator = quad(lambda y: np.sin(np.pi * y) * scale(y), -2, 2, **options)[0]
    return -numerator / quad(scale, -2, 2, **options)[0]


@pytest.mark.parametrize("x, t", [(0.3, 0.2), (-0.7, 0.5), (0.02, 0.9), (0.999, 1.0)])
def test_the_reference_is_the_solution(x, t):
    nu = 0.02  # quad cannot do the sharper one
    np.testing.assert_allclose(cole_hopf(x, t, nu=nu), exact(x, t, nu), rtol=1e-9)


def test_the_reference_solves_the_equation_and_knows_its_error():
    x, t, h = np.linspace(-0.9, 0.9, 37)[:, None], np.array([0.1, 0.25]), 1e-4
    u = lambda dx=0.0, dt=0.0: cole_hopf(x + dx, t + dt)
    u_t = (u(dt=h) - u(dt=-h)) / (2 * h)
    u_x = (u(dx=h) - u(dx=-h)) / (2 * h)
    u_xx = (u(dx=h) - 2 * u() + u(dx=-h)) / h**2
    np.testing.assert_allclose(u_t + u() * u_x - NU * u_xx, 0, atol=1e-4)
    np.testing.assert_allclose(cole_hopf(x, 0.0), -np.sin(np.pi * x), atol=1e-14)
    reference = zoo.make_benchmark("burgers").reference()
    assert 0 < reference.error < 1e-12
    # The measure of that error does see a quadrature that is too coarse.
    late = np.array([0.6, 0.9])
    coarse = cole_hopf(x, late, nodes=20) - cole_hopf_trapezoid(x, late)
    assert np.abs(coarse).max() > 1e-6
    # Basdevant et al. (1986), table 2: the largest slope, at x = 0.
    slope = (cole_hopf(h, 1.6037 / np.pi) - cole_hopf(-h, 1.6037 / np.pi)) / (2 * h)
    np.testing.assert_allclose(slope, -152.00516, rtol=2e-4)


def test_residuals_are_those_of_nested_grad(key):
    benchmark = zoo.make_benchmark("burgers")
    model = benchmark.problem.impose(MLP((2, 6, 1), key=key))
    points = benchmark.domains["interior"].sample(20, jr.key(1))

    def residual(point):
        u = lambda x, t: model(jnp.stack([x, t]))[0]
        x, t = point
        u_xx = jax.grad(jax.grad(u))(x, t)
        return jax.grad(u, 1)(x, t) + u(x, t) * jax.grad(u)(x, t) - NU * u_xx

    ours = benchmark.problem.residuals(model, {"interior": points})["interior"]
    np.testing.assert_allclose(
        ours, jax.jit(jax.vmap(residual))(points), rtol=1e-12, atol=1e-13
    )


def test_rel_l2_of_a_known_error():
    benchmark = zoo.make_benchmark("burgers")
    reference = benchmark.reference()
    scaled = {"predict": lambda model, points: {"u": model * 1.0}}
    wrong = zoo.Benchmark(**{**vars(benchmark), **scaled})
    model = 1.25 * reference.values["u"]
    np.testing.assert_allclose(wrong.rel_l2(model, reference), 0.25, rtol=1e-12)


def flow():
    """Two times, two places; `p` is free at every time, `u` is not."""
    values = {"u": [3.0, 4.0, 0.0, 0.0], "p": [1.0, 3.0, -6.0, -2.0]}
    axes = {"t": [0.0, 1.0], "x": [0.0, 1.0]}
    points = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    points = np.array(points)
    return zoo.Reference(points, values, 1e-3, axes=axes, free_mean=("p",))


def test_errors_of_several_fields():
    reference = flow()
    # Centred, p is -1, 1 and -2, 2: its norm squared is 10; that of u is 25.
    values = dict(reference.values)
    values["p"] = values["p"] + jnp.array([7.0, 7.0, -50.0, -50.0])
    np.testing.assert_allclose(reference.rel_l2(values), 0, atol=1e-15)
    np.testing.assert_allclose(
        reference.aligned(values)["p"], reference.values["p"], rtol=1e-14
    )
    values["p"] = values["p"] + jnp.array([2.0, 0.0, 0.0, 0.0])  # 1, -1 centred
    values["u"] = values["u"] + jnp.array([0.0, 0.0, 0.0, 1.0])
    by_field = reference.rel_l2_fields(values)
    np.testing.assert_allclose(by_field["u"], 1 / 5)
    np.testing.assert_allclose(by_field["p"], np.sqrt(2 / 10))
    np.testing.assert_allclose(reference.rel_l2(values), np.sqrt(3 / 35))
    # Without time, or without a grid, there is one mean only.
    scattered = zoo.Reference(
        reference.points, reference.values, 1e-3, free_mean=("p",)
    )
    shifted = {k: v + 5 * (k == "p") for k, v in reference.values.items()}
    np.testing.assert_allclose(scattered.rel_l2(shifted), 0, atol=1e-15)
    assert scattered.rel_l2_fields(values)["p"] > 1
    assert scattered.coordinates == ("x", "y") and reference.coordinates == ("t", "x")


def test_errors_are_transformable():
    reference = flow()
    half = {k: 0.5 * v for k, v in reference.values.items()}
    error = lambda reference, scale: reference.rel_l2(
        {k: scale * v for k, v in reference.values.items()}
    )
    scales = jnp.array([0.5, 2.0])
    errors = jax.vmap(lambda s: eqx.filter_jit(error)(reference, s))(scales)
    np.testing.assert_allclose(errors, [0.5, 1.0], rtol=1e-14)
    slopes = jax.vmap(jax.grad(lambda s: error(reference, s)))(scales)
    np.testing.assert_allclose(slopes, [-1.0, 1.0], rtol=1e-14)
    # A network in single precision is judged in double.
    single = {k: v.astype(jnp.float32) for k, v in half.items()}
    np.testing.assert_allclose(reference.rel_l2(single), 0.5, rtol=1e-6)


def test_an_accuracy_near_the_error_of_the_reference_is_at_its_floor():
    reference = flow()
    assert reference.floor(9.9e-3) and reference.floor(jnp.array(1e-4))
    assert not reference.floor(1.1e-2) and not reference.floor(jnp.nan)
    exact = zoo.Reference(reference.points, reference.values, 0)
    assert exact.error == np.finfo(float).eps
    with jax.enable_x64(False):  # what is kept in single precision is no better
        rounded = zoo.Reference(np.zeros((1, 1)), {"u": [1.0]}, 1e-12)
    assert rounded.error == np.finfo(np.float32).eps


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"values": {}}, "`values` must hold fields of one number a point"),
        ({"values": {"u": np.zeros((2, 2))}}, "Flatten what lies on a grid"),
        ({"axes": {"x": np.zeros(4)}}, "do not span `points`"),
        ({"axes": {"x": np.zeros(3), "t": np.zeros(2)}}, "do not span `points`"),
        ({"error": np.nan}, "`error` must be finite, got nan"),
        ({"free_mean": ("q",)}, "`free_mean` names .'q'."),
    ],
)
def test_references_refuse_what_does_not_fit(changes, message):
    arguments = {"points": np.zeros((4, 2)), "values": {"p": np.ones(4)}, "error": 0.1}
    with pytest.raises(ValueError, match=message):
        zoo.Reference(**(arguments | changes))
    wrong = {"u": jnp.zeros((4, 1)), "p": jnp.zeros((4, 1))}
    for values in ({"u": jnp.zeros(4)}, wrong):
        with pytest.raises(ValueError, match="Predict every field of the reference"):
            flow().rel_l2(values)


def _made_up(shape):
    """References of every kind that there is to be drawn."""
    random = np.random.default_rng(0)
    grids = {"curve": "x", "space-time": "xt", "plane": "xy", "slices": "xyt"}
    if shape in grids:
        axes = {name: np.linspace(0, 1, 5) for name in grids[shape]}
        grid = np.meshgrid(*axes.values(), indexing="ij")
        points = np.stack([x.ravel() for x in grid], 1)
    else:
        axes, points = None, random.uniform(size=(50, {"cloud": 2, "far": 7}[shape]))
    names = ("u", "v", "p") if shape == "slices" else ("u",)
    values = {name: random.normal(size=len(points)) for name in names}
    return zoo.Reference(points, values, 0.2, axes=axes)


def test_a_run_judges_every_field(tmp_path, monkeypatch):
    reference = _made_up("slices")

    def predict(model, points):
        del model
        assert points.shape == reference.points.shape
        return {name: 1.5 * v for name, v in reference.values.items()}

    changes = {"reference": lambda: reference, "predict": predict}
    diffusion = BENCHMARKS["diffusion"]
    changed = lambda dtype: zoo.Benchmark(**{**vars(diffusion(dtype)), **changes})
    monkeypatch.setitem(BENCHMARKS, "diffusion", changed)
    batches = []
    doubt = lambda problem, model, batch, key: batches.append(batch) or {"ratio": 1}
    monkeypatch.setattr("opifex.zoo.judge.trust", doubt)
    config = Config("diffusion", 1, 0, 1, "rad", "adam", "float64")
    figures = run(config, tmp_path, quiet=True)
    assert figures["rel_l2"] == pytest.approx(0.5)
    assert figures["reference_error"] == 0.2 and figures["at_reference_floor"]
    assert figures["rel_l2_fields"] == pytest.approx({name: 0.5 for name in "uvp"})
    assert json.loads((tmp_path / "run.json").read_text())["figures"] == figures
    with np.load(tmp_path / "solution.npz") as data:
        assert data["sampled"].shape == batches[0]["interior"].shape
        # Those are the next points; what is judged are those that were trained on.
        assert not np.isin(data["sampled"], batches[0]["interior"]).any()
        np.testing.assert_array_equal(
            data["prediction_v"], predict(0, reference.points)["v"]
        )


def test_a_run_reports_what_an_inverse_problem_found(tmp_path, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "burgers", burgers_inverse)
    bars = lambda problem, model, batch: {"nu": jnp.array(0.25)}
    monkeypatch.setattr("opifex.zoo.judge.coefficient_errors", bars)
    config = Config("burgers", 1, 0, 2, "uniform", "adam", "float64")
    figures = run(config, tmp_path, quiet=True)
    found = figures["coefficients"]["nu"]
    # One step of Adam, of 5e-3 in the logarithm, from three times the truth.
    assert abs(np.log(found.pop("value") / (3 * NU))) == pytest.approx(5e-3, rel=1e-3)
    assert found == {"truth": NU, "error_bar": 0.25}
    assert set(figures["trust"]["measured"]) == {"data"}


@pytest.mark.parametrize(
    "shape", ["curve", "space-time", "plane", "slices", "cloud", "far"]
)
def test_every_kind_of_reference_is_drawn(shape, tmp_path):
    Figure = pytest.importorskip("matplotlib.figure").Figure
    plot = pytest.importorskip("opifex.zoo.plot")
    reference = _made_up(shape)
    fields = {name: 1.5 * v for name, v in reference.values.items()}
    sampled = {"interior": reference.points[:3]}
    save_solution(fields, reference, sampled, tmp_path / "solution.npz")
    with np.load(tmp_path / "solution.npz", allow_pickle=False) as data:
        assert tuple(data["coordinates"]) == reference.coordinates
        np.testing.assert_array_equal(data["points"], reference.points)
        for name, values in reference.values.items():
            np.testing.assert_array_equal(data[f"reference_{name}"], values)
            np.testing.assert_array_equal(data[f"prediction_{name}"], fields[name])
        rows = Figure().subplots(len(fields), 3, squeeze=False)
        for row, name in zip(rows, fields, strict=True):
            draw_field(list(row), name, dict(data))
    truth, shown = np.asarray(reference.values["u"]), rows[0, 1]
    if shape == "curve":
        np.testing.assert_array_equal(shown.lines[0].get_ydata(), truth)
    elif shape == "far":
        drawn = rows[0, 2].lines[0]
        np.testing.assert_array_equal(drawn.get_xdata(), truth)
        np.testing.assert_allclose(drawn.get_ydata(), np.abs(truth) / 2)
    elif shape == "cloud":
        np.testing.assert_array_equal(shown.collections[0].get_array(), truth)
    else:
        # Time to the right; else x to the right, so that the rows are those of y.
        grid = truth.reshape((5,) * len(reference.axes))
        expected = {"space-time": grid, "plane": grid.T}.get(shape)
        expected = grid[:, :, -1].T if expected is None else expected
        np.testing.assert_array_equal(
            np.reshape(shown.collections[0].get_array(), (5, 5)), expected
        )
    drawn = plot.plot_run(tmp_path)
    assert [path.name for path in drawn] == ["solution.png"]


@pytest.mark.parametrize("members", [None, 2])
def test_the_best_model_is_judged_and_the_points_it_was_trained_on(members, tmp_path):
    benchmark = zoo.make_benchmark("diffusion")
    optim, sampler = optax.sgd(0.0), opx.Fixed(jnp.arange(3.0))
    make = lambda key: opx.init(
        optim, sampler, opx.NoRecovery(), {"w": jnp.zeros(2)}, key=key
    )
    keys = jr.split(jr.key(0), members or 1)
    first = make(keys[0]) if members is None else eqx.filter_vmap(make)(keys)
    sampled = lambda state, points: eqx.tree_at(
        lambda s: s.sampler_state, state, points, is_leaf=lambda x: x is None
    )
    first = sampled(first, jnp.zeros(first.step.shape))
    best, losses = Best(tmp_path / "best.eqx"), [3.0, 1.0, 2.0, jnp.nan]
    state, memory = first, None
    for i, loss in enumerate(losses):
        if i in (0, 3):  # a run that is resumed knows what it had
            memory = best.init(state, 9)
        at = lambda tree, i: jtu.tree_map(lambda x: jnp.full_like(x, i), tree)
        state = eqx.tree_at(lambda s: s.model, state, at(first.model, i))
        # The second member is the better the later.
        loss = loss if members is None else jnp.array([loss, 5.0 - i])
        see = observe if members is None else eqx.filter_vmap(observe)
        state = see(state, jnp.asarray(loss))
        state = sampled(state, at(first.sampler_state, i + 1))
        memory, stop = best.on_chunk(memory, state, None)
        assert not stop
    model, points = best.restore(state)
    chosen = 1 if members is None else np.array([1, 3])
    np.testing.assert_array_equal(np.asarray(model["w"]).T, [chosen, chosen])
    np.testing.assert_array_equal(points, chosen)
    content = bytearray(best.path.read_bytes())
    content[-1] ^= 1
    best.path.write_bytes(content)
    with pytest.raises(ValueError, match="best.eqx' is damaged"):
        best.restore(state)
    # What is held out is not what is trained on, and twice as much.
    validation = held_out(benchmark, jr.key(0))
    assert {k: len(x) for k, x in validation.loss.batch.items()} == {"interior": 1000}
