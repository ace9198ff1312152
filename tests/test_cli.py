import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from opifex.cli import _report, main


def opifex(*arguments, folder, check=0):
    """The program as a user calls it, in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "opifex", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == check, done.stdout + done.stderr
    return done


KEYS = "problem rel_l2 reference_error steps wall_s cpu_s n_params dtype result".split()


# Not ignoring SIGINT, as programs do that a shell began in the background.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from opifex.cli import main
sys.exit(main())
"""


def interrupted(folder, number, options):
    """How a run ends that gets a signal after a chunk."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *options]
    history = folder / "cut/history.csv"
    size = history.stat().st_size if history.exists() else 0
    program = subprocess.Popen(command, cwd=folder)
    for _ in range(6000):  # a chunk has been run once there are more rows
        if history.exists() and history.stat().st_size > size:
            break
        time.sleep(0.05)
    os.kill(program.pid, number)
    code = program.wait(timeout=120)
    return code, json.loads((folder / "cut/run.json").read_text())["figures"]


def test_train_writes_what_it_promises_and_resumes_to_the_same_bits(tmp_path, capsys):
    once = ["train", "diffusion", "--quiet", "--optimizer", "adam", "--steps", "2000"]
    whole = opifex(*once, "--out", "whole", "--json", "a.json", folder=tmp_path)
    assert whole.stdout == "" and whole.stderr == ""
    figures = json.loads((tmp_path / "a.json").read_text())
    assert set(KEYS) <= figures.keys()
    assert figures["result"] == "successful" and figures["steps"] == 2000
    assert 0 < figures["trust"]["residual_ratio"] < 10
    assert figures["rel_l2"] < 0.6 and figures["reference_error"] < 1e-12
    run, cut = tmp_path / "whole", tmp_path / "cut"
    for name in ("solution.png", "history.png", "history.csv", "checkpoints"):
        assert (run / name).exists()
    document = json.loads((run / "run.json").read_text())
    assert {"config", "figures", "versions", "machine"} <= document.keys()
    assert len((run / "history.csv").read_text().splitlines()) == 2001

    (run / "solution.png").unlink()
    assert main(["plot", str(run)]) == 0
    assert "solution.png" in capsys.readouterr().out and (run / "solution.png").exists()

    # Pressing Ctrl-C, then the end of a job, then nothing.
    resume, before = ["train", "diffusion", "--resume", "--out", "cut", "--quiet"], 0
    first = [*once, "--out", "cut"]
    for number, code, options in (
        (signal.SIGINT, 130, first),
        (signal.SIGTERM, 75, resume),
    ):
        ended, figures = interrupted(tmp_path, number, options)
        assert ended == code
        assert figures["result"] == "interrupted" and figures["resumable"]
        assert before < figures["steps"] < 2000
        before = figures["steps"]
    opifex(*resume, folder=tmp_path)
    with np.load(run / "solution.npz") as a, np.load(cut / "solution.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
    history = (run / "history.csv").read_bytes()
    assert history == (cut / "history.csv").read_bytes()


def test_an_ensemble_in_single_precision_out_of_time(tmp_path):
    # No time at all: one chunk is run.
    opifex(
        *["train", "diffusion", "--steps", 500, "--ensemble", 2, "--dtype", "float32"],
        *["--sampler", "sobol", "--optimizer", "adam", "--json", "a.json"],
        *["--time-budget", 1e-3],
        folder=tmp_path,
        check=75,
    )
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["result"] == "time_budget_spent" and figures["steps"] == 250
    assert figures["resumable"]
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
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "--quiet"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_report_says_what_is_at_the_floor_and_what_was_found(tmp_path, capsys):
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
    assert main(["list"]) == 0
    assert "burgers" in capsys.readouterr().out
