import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest


def opifex(*arguments, folder, check=0):
    """The program as a user calls it, in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "opifex", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == check, done.stdout + done.stderr
    return done


KEYS = "problem rel_l2 reference_error steps wall_s cpu_s n_params dtype result".split()


def test_train_writes_what_it_promises_and_resumes_to_the_same_bits(tmp_path):
    once = ["train", "diffusion", "--quiet", "--optimizer", "adam"]
    whole = opifex(
        *once, "--steps", 500, "--out", "whole", "--json", "a.json", folder=tmp_path
    )
    assert whole.stdout == "" and whole.stderr == ""
    figures = json.loads((tmp_path / "a.json").read_text())
    assert set(KEYS) <= figures.keys()
    assert figures["result"] == "successful" and figures["steps"] == 500
    assert 0 < figures["trust"]["residual_ratio"] < 10
    assert figures["rel_l2"] < 0.6 and figures["reference_error"] < 1e-12
    run = tmp_path / "whole"
    for name in ("solution.png", "history.png", "history.csv", "checkpoints"):
        assert (run / name).exists()
    document = json.loads((run / "run.json").read_text())
    assert {"config", "figures", "versions", "machine"} <= document.keys()
    assert len((run / "history.csv").read_text().splitlines()) == 501

    (run / "solution.png").unlink()
    shown = opifex("plot", "whole", folder=tmp_path)
    assert "solution.png" in shown.stdout and (run / "solution.png").exists()

    # No time at all: one chunk is run, and the rest later.
    cut = ["--steps", 500, "--out", "cut", "--time-budget", 1e-3]
    opifex(*once, *cut, folder=tmp_path, check=75)
    before = json.loads((tmp_path / "cut/run.json").read_text())["figures"]
    assert before["result"] == "time_budget_spent" and before["steps"] == 250
    opifex("train", "diffusion", "--resume", "--out", "cut", "--quiet", folder=tmp_path)
    with (
        np.load(run / "solution.npz") as a,
        np.load(tmp_path / "cut/solution.npz") as b,
    ):
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
    assert (run / "history.csv").read_bytes() == (
        tmp_path / "cut/history.csv"
    ).read_bytes()


# Not ignoring SIGINT, as programs do that a shell began in the background.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from opifex.cli import main
sys.exit(main())
"""


def test_signals_leave_a_run_that_resumes(tmp_path):
    command = [sys.executable, "-c", PROGRAM, "train", "diffusion", "--quiet"]
    options = ["--steps", "100000", "--optimizer", "adam", "--out", "run"]
    history, size = tmp_path / "run/history.csv", 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        program = subprocess.Popen([*command, *options], cwd=tmp_path)
        for _ in range(1200):  # a chunk has been run once there are more rows
            if history.exists() and history.stat().st_size > size:
                break
            time.sleep(0.1)
        os.kill(program.pid, number)
        assert program.wait(timeout=120) == code
        figures = json.loads((tmp_path / "run/run.json").read_text())["figures"]
        assert figures["result"] == "interrupted" and figures["resumable"]
        options, size = [*options[:6], "--resume"], history.stat().st_size
    steps = max(int(p.name) for p in (tmp_path / "run/checkpoints").glob("[0-9]*"))
    opifex(
        *["train", "diffusion", "--resume", "--out", "run", "--quiet"],
        *["--steps", steps + 10, "--json", "b.json"],
        folder=tmp_path,
    )
    figures = json.loads((tmp_path / "b.json").read_text())
    assert figures["steps"] == steps + 10 and figures["result"] == "successful"


def test_an_ensemble_in_single_precision(tmp_path):
    opifex(
        *["train", "diffusion", "--steps", 30, "--ensemble", 2, "--dtype", "float32"],
        *["--sampler", "sobol", "--optimizer", "adam", "--json", "a.json"],
        folder=tmp_path,
    )
    figures = json.loads((tmp_path / "a.json").read_text())
    assert len(figures["rel_l2_members"]) == 2
    assert figures["rel_l2"] in figures["rel_l2_members"]
    assert figures["dtype"] == "float32"
    assert (tmp_path / "runs/diffusion-1/solution.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["burgrs"], "Did you mean 'burgers'"),
        (["burgers", "--optimizer", "adm"], "Did you mean 'adam'"),
        (["burgers", "--sampler", "sobbol"], "Did you mean 'sobol'"),
        (["burgers", "--dtype", "float16"], "'--dtype'|`--dtype`"),
        (["burgers", "--steps", "0"], "`steps` must be a whole number of at least 1"),
        (["burgers", "--time-budget", "-1"], "`time_budget` must be positive"),
        (["burgers", "--resume"], "there is no run of burgers"),
        (["burgers", "--out", "/proc/nowhere"], "cannot be written|proc"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, monkeypatch, capsys):
    import re

    from opifex.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "--quiet"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_report_says_what_is_at_the_floor_and_what_was_found(tmp_path, capsys):
    from opifex.cli import _report

    figures = {
        "problem": "burgers-inverse",
        "result": "successful",
        "steps": 3,
        "n_params": 9,
        "dtype": "float64",
        "rel_l2": 1e-3,
        "reference_error": 2e-4,
        "at_reference_floor": True,
        "coefficients": {"nu": {"value": 0.51, "truth": 0.5, "error_bar": 0.02}},
        "trust": {"residual_ratio": 1.23},
        "cpu_s": 1.0,
        "wall_s": 1.0,
        "resumable": False,
    }
    _report(figures, tmp_path)
    shown = capsys.readouterr().out
    assert "1.00e-03 (of the reference itself: 2e-04; at its floor)" in shown
    assert "nu = 0.51 +- 0.02 (truth: 0.5)" in shown
    assert "residual at fresh points 1.2 times" in shown
    _report(figures | {"at_reference_floor": False, "resumable": True}, tmp_path)
    shown = capsys.readouterr().out
    assert "2e-04)" in shown and "train burgers-inverse --resume" in shown


def test_list(capsys):
    from opifex.cli import main

    assert main(["list"]) == 0
    assert "burgers" in capsys.readouterr().out
