import functools
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ive

from opifex import cli, zoo
from opifex.zoo import recipe as recipes
from opifex.zoo.operators import (
    burgers_data,
    burgers_operator,
    cache_folder,
    darcy,
    darcy_data,
    energy_above,
)
from opifex.zoo.operators.burgers import random_start, solve_burgers
from opifex.zoo.operators.cache import cached
from opifex.zoo.operators.darcy import random_medium, solve_darcy


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPIFEX_CACHE", str(tmp_path / "cache"))
    return tmp_path


def cole_hopf(x, nu, time, amplitude):
    """From `amplitude sin(2 pi x)`, by the heat equation for
    `exp(amplitude cos(2 pi x) / (4 pi nu))`, whose series has Bessel functions."""
    z = amplitude / (4 * np.pi * nu)
    n = np.arange(1, 60)
    decay = 2 * ive(n, z) * np.exp(-nu * (2 * np.pi * n) ** 2 * time)
    phase = 2 * np.pi * n * x[:, None]
    theta = ive(0, z) + np.cos(phase) @ decay
    return 2 * nu * (np.sin(phase) @ (2 * np.pi * n * decay)) / theta


def test_burgers_is_solved_for_many_starts_at_once():
    x = np.arange(128) / 128
    starts = np.stack([a * np.sin(2 * np.pi * x) for a in (1.0, -0.5, 2.0)])
    expected = [cole_hopf(x, 0.05, 0.5, a) for a in (1.0, -0.5, 2.0)]
    errors = [
        np.abs(solve_burgers(starts, nu=0.05, steps=n, time=0.5) - expected).max()
        for n in (20, 40)
    ]
    assert errors[1] < 1e-6 and errors[0] / errors[1] > 12  # of fourth order
    with pytest.raises(FloatingPointError, match="Take more steps"):
        solve_burgers(1e6 * starts, nu=1e-3, steps=2)


def test_random_starts_have_their_spectrum():
    u = random_start(4000, 96, seed=1)
    np.testing.assert_allclose(u.mean(1), 0, atol=1e-14)
    z = np.fft.rfft(u, norm="forward")
    for k in (1, 2, 5):  # the variance of c cos + s sin, at one point
        expected = 2 * (25 / ((2 * np.pi * k) ** 2 + 25)) ** 2
        found = 2 * np.mean(np.abs(z[:, k]) ** 2)
        np.testing.assert_allclose(found, expected, rtol=0.06)
        # Real and imaginary parts are independent: no phase is preferred.
        assert abs(np.mean(z[:, k] ** 2)) < 0.06 * expected
    # The same functions on a finer grid, and in a longer sequence.
    longer = random_start(3, 2048, seed=2)
    np.testing.assert_allclose(
        random_start(2, 1024, seed=2), longer[:2, ::2], rtol=0, atol=1e-12
    )
    assert not np.allclose(random_start(2, 96, seed=3), random_start(2, 96, seed=4))


def test_energy_above_counts_what_is_cut_off():
    x = np.arange(32) / 32
    u = 7 + np.cos(2 * np.pi * x) + 0.5 * np.sin(2 * np.pi * 3 * x)
    rows = np.stack([u, u])[..., None]
    for modes, share in {1: 1.0, 2: 0.2, 3: 0.2, 4: 0.0}.items():
        assert energy_above(rows, modes) == pytest.approx(share, abs=1e-14)
    plane = np.cos(2 * np.pi * (x[:, None] + 2 * x))[None, ..., None]
    assert energy_above(plane, (2, 3)) == pytest.approx(0, abs=1e-14)
    assert energy_above(plane, 2) == pytest.approx(1)


@pytest.mark.parametrize("faces", ["harmonic", "arithmetic"])
def test_darcy_is_of_second_order_for_smooth_media(faces):
    def error(n):
        x = np.linspace(0, 1, n)
        x, y = np.meshgrid(x, x, indexing="ij")
        a = 1 + 0.5 * np.sin(2 * x + y)
        a_x, a_y = np.cos(2 * x + y), 0.5 * np.cos(2 * x + y)
        s, p = np.sin, np.pi
        u = s(p * x) * s(2 * p * y)
        u_x, u_y = (
            p * np.cos(p * x) * s(2 * p * y),
            2 * p * s(p * x) * np.cos(2 * p * y),
        )
        f = 5 * p**2 * a * u - a_x * u_x - a_y * u_y
        return np.abs(solve_darcy(a, f, faces=faces) - u).max()

    coarse, fine = error(17), error(33)
    assert fine < 5e-3 and 3.7 < coarse / fine < 4.3


def test_darcy_layers_by_hand():
    """Four unknowns, and a flux that the harmonic mean makes 6 between 12 and 4."""
    a = np.full((4, 4), 12.0)
    a[:, 2:] = 4.0
    u = solve_darcy(a)
    # h = 1/3. Unknowns of a column are equal, so no flux passes between them.
    matrix = np.array([[12 + 12 + 6, -6], [-6, 4 + 4 + 6]])
    left, right = np.linalg.solve(matrix, np.full(2, 1 / 9))
    np.testing.assert_allclose(u[1:3, 1], left, rtol=1e-12)
    np.testing.assert_allclose(u[1:3, 2], right, rtol=1e-12)
    assert not u[[0, -1]].any() and not u[:, [0, -1]].any()


def test_random_media_are_the_same_on_every_grid():
    media = random_medium(40, 33, seed=5)
    assert set(np.unique(media)) == {3.0, 12.0}
    assert 0.4 < np.mean(media == 12) < 0.6
    np.testing.assert_array_equal(random_medium(2, 17, seed=5), media[:2, ::2, ::2])


def test_data_know_their_error_and_are_found_again(caplog):
    calls = []
    data = burgers_data(3, grid=64, nu=0.05, steps=50, seed=1)
    assert data["inputs"].shape == data["targets"].shape == (3, 64, 1)
    assert 0 < data["error"] < 1e-4
    truth = solve_burgers(data["inputs"][..., 0], nu=0.05, steps=400)
    error = np.linalg.norm(data["targets"][..., 0] - truth) / np.linalg.norm(truth)
    np.testing.assert_allclose(data["error"], error, rtol=0.3)

    make = lambda: calls.append(0) or {"a": np.arange(3.0)}
    for _ in range(3):
        found = cached("thing", {"seed": 1}, make)
        np.testing.assert_array_equal(found["a"], [0, 1, 2])
    assert len(calls) == 1
    cached("thing", {"seed": 2}, make)
    assert len(calls) == 2
    files = sorted(p.name for p in cache_folder().iterdir())
    assert files[1:] == ["thing-seed1-v1.npz", "thing-seed2-v1.npz"]
    assert not caplog.records


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def _other_values(path):
    with np.load(path) as file:
        np.savez(path, **(dict(file) | {"a": np.ones(3)}))


def _other_seed(path):
    path.with_name("thing-seed2-v1.npz").replace(path)


@pytest.mark.parametrize("damage", [_truncated, _other_values, _other_seed])
def test_damaged_files_are_made_again(damage, caplog):
    make = lambda: {"a": np.arange(3.0)}
    cached("thing", {"seed": 1}, make)
    cached("thing", {"seed": 2}, lambda: {"a": np.zeros(3)})
    damage(cache_folder() / "thing-seed1-v1.npz")
    with caplog.at_level(logging.WARNING, "opifex"):
        np.testing.assert_array_equal(cached("thing", {"seed": 1}, make)["a"], range(3))
    assert "is made again" in caplog.text
    caplog.clear()
    cached("thing", {"seed": 1}, lambda: pytest.fail("it was kept"))
    assert not caplog.records


def test_without_a_folder_data_are_made_every_time(folder, monkeypatch, caplog):
    (folder / "file").write_text("")
    monkeypatch.setenv("OPIFEX_CACHE", str(folder / "file/below"))
    with caplog.at_level(logging.WARNING, "opifex"):
        assert cached("thing", {}, lambda: {"a": np.ones(1)})["a"] == 1
    assert "`OPIFEX_CACHE`" in caplog.text


def small(monkeypatch):
    """The operators of the command line, of a size for tests."""
    sizes = {
        "num_train": 40,
        "num_test": 8,
        "steps": 40,
        "width": 6,
        "modes": 4,
        "num_layers": 1,
    }
    sizes |= {"grid": 16}
    burgers = functools.partial(burgers_operator, **sizes)
    medium = functools.partial(darcy, **(sizes | {"grid": 15, "steps": 20}))
    monkeypatch.setitem(recipes.OPERATORS, "burgers-operator", burgers)
    monkeypatch.setitem(recipes.OPERATORS, "darcy", medium)


def test_operators_are_trained_from_the_command_line(folder, monkeypatch, capsys):
    small(monkeypatch)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("opifex.zoo.run.CHUNK", 20)
    train = ["train", "burgers-operator", "--dtype", "float64"]
    assert cli.main([*train, "--out", "whole", "--json", "a.json"]) == 0
    assert "on a grid twice as fine" in capsys.readouterr().out
    figures = json.loads((folder / "a.json").read_text())
    assert figures["steps"] == 40 and figures["result"] == "successful"
    assert 0.01 < figures["rel_l2"] < 1 and figures["rel_l2_max"] > figures["rel_l2"]
    assert abs(figures["rel_l2_fine"] / figures["rel_l2"] - 1) < 0.1
    assert 0 < figures["reference_error"] < 1e-4
    whole = folder / "whole"
    for name in ("solution.png", "history.png", "history.csv", "checkpoints"):
        assert (whole / name).exists()
    with np.load(whole / "solution.npz") as file:
        saved = dict(file)
    assert list(saved["fields"]) == ["best", "median", "worst"]
    errors = [
        np.linalg.norm(saved[f"prediction_{k}"] - saved[f"reference_{k}"])
        / np.linalg.norm(saved[f"reference_{k}"])
        for k in saved["fields"]
    ]
    assert errors == sorted(errors)
    np.testing.assert_allclose(errors[-1], figures["rel_l2_max"], rtol=1e-6)


def test_an_ensemble_learns_darcy(folder, monkeypatch):
    small(monkeypatch)
    monkeypatch.chdir(folder)
    options = ["--ensemble", "2", "--dtype", "float64", "--json", "a.json", "--quiet"]
    assert cli.main(["train", "darcy", *options]) == 0
    figures = json.loads((folder / "a.json").read_text())
    assert figures["rel_l2"] in figures["rel_l2_members"]
    assert len(figures["rel_l2_members"]) == 2 and figures["rel_l2"] < 0.9
    assert figures["at_reference_floor"] == (
        figures["rel_l2"] < 10 * figures["reference_error"]
    )
    assert (folder / "runs/darcy-1/solution.png").exists()


def test_what_the_command_line_refuses_and_lists(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(["train", "darcy", "--sampler", "sobol"]) == 2
    assert "Use 'minibatch' to learn an operator" in capsys.readouterr().err
    assert cli.main(["train", "burgers", "--sampler", "minibatch"]) == 2
    assert "does not go with 'burgers'" in capsys.readouterr().err
    assert cli.main(["train", "darcyy"]) == 2
    assert "Did you mean 'darcy'" in capsys.readouterr().err
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "darcy " in shown and "burgers-operator " in shown
    assert not cache_folder().exists()  # nothing is computed before it is needed


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: burgers_data(0), "`num` must be a whole number"),
        (lambda: burgers_data(1, nu=0.0), "`nu` must be positive"),
        (lambda: burgers_data(1, seed=-1), "`seed`"),
        (lambda: darcy_data(1, grid=0), "`grid`"),
        (lambda: solve_darcy(np.zeros((5, 5))), "`a` must hold positive numbers"),
        (lambda: solve_darcy(np.ones((5, 4))), "square"),
        (lambda: zoo.find_benchmark("dary"), "Did you mean 'darcy'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_default_data_are_split_and_thinned(monkeypatch):
    benchmark = darcy(jnp.float32, num_train=3, num_test=2, grid=8)
    data, whole = benchmark.data(), darcy_data(5, grid=15)
    assert data.train.inputs.dtype == jnp.float32
    assert data.train.inputs.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(
        data.test.targets, whole["targets"][3:, ::2, ::2], rtol=1e-6
    )
    np.testing.assert_allclose(data.fine.targets, whole["targets"][3:], rtol=1e-6)
    assert list(data.axes) == ["x", "y"] and data.axes["x"][-1] == 1
    burgers = burgers_operator(num_train=3, num_test=2, grid=8).data()
    assert burgers.fine.targets.shape == (2, 16, 1)
    np.testing.assert_array_equal(burgers.fine.inputs[:, ::2], burgers.test.inputs)
    assert len(burgers.axes["x"]) == 8 and burgers.axes["x"][-1] == 7 / 8
