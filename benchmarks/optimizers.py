"""What each optimizer reaches in a given CPU time on problems of the zoo.

    python benchmarks/optimizers.py [--problems burgers poisson ...]
        [--optimizers adam adam+ssbroyden ...] [--cpu-seconds 20] [--seed 0]
        [--learned] [--out DIR] [--json FILE] [--figure FILE]

On every problem all optimizers train the same network, from the same start, in float64,
on as many points, placed by the same sampler and replaced after every chunk of steps:
250, or 10 of the methods whose steps are dear. What is counted is the CPU time of the
training, without compilation and without judging. An optimizer that has a learning rate
begins with 5e-3 and follows a cosine over the time; `adam+NAME` are 500 steps of Adam,
and NAME for the rest. No recovery steps in.

- `PROBLEM.OPTIMIZER.rel_l2`: relative L2 error against the reference, of the model that
    was best at points held out, as `opifex train` chooses it.
- `PROBLEM.OPTIMIZER.cpu_s`: the CPU time; less than a chunk above `--cpu-seconds`.
- `PROBLEM.OPTIMIZER.steps`: how many that were.
- `learned.loss_ratio`, `learned.step_ratio`: with `--learned`; see `meta_train.py`.

With `--out DIR` what was measured is kept, and what is there already is not measured
again. `--figure` draws the error over the time.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from matplotlib.figure import Figure

import opifex as opx
from opifex._optimizer.factory import named_optimizer, searches_along_a_line
from opifex._optimizer.plans import planned_optimizer
from opifex.zoo import Benchmark, make_benchmark, SAMPLERS
from opifex.zoo.best import held_out


PROBLEMS = (
    "burgers",
    "poisson",
    "helmholtz",
    "allen-cahn",
    "taylor-green",
    "kovasznay",
)
OPTIMIZERS = (
    "adam",
    "soap",
    "muon",
    "adam+lbfgs",
    "adam+bfgs",
    "adam+ssbfgs",
    "adam+ssbroyden",
    "adam+levenberg_marquardt",
    "adam+engd",
    "adam+nncg",
)
RATE, FIRST = 5e-3, 500
STEPS, DEAR_STEPS = 250, 10
DEAR = ("levenberg_marquardt", "engd", "nncg")
# A loop that is jitted by hand asks for the order that `fit` asks for.
ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

Curve = list[dict[str, float]]


def make(name: str, rate: Any) -> optax.GradientTransformation:
    """The optimizer, its learning rate from outside, where the time is known."""
    if "+" in name or searches_along_a_line(name):
        return planned_optimizer(name, sys.maxsize, RATE)
    return named_optimizer(name, lambda count: rate)


class Run:
    """The compiled chunks of an optimizer on a problem, and where training is."""

    def __init__(self, benchmark: Benchmark, name: str, seed: int):
        self.benchmark, self.name, self.steps = benchmark, name, 0
        self.sampler = SAMPLERS[benchmark.sampler](benchmark, seed)
        model_key, run_key = jr.split(jr.key(seed))
        model = benchmark.model(model_key, jnp.float64)
        state = self.recipe(STEPS, jnp.array(RATE)).init(model, key=run_key)
        self.arrays, self.static = eqx.partition(state, eqx.is_array)
        self.chunks: dict[int, Any] = {}

    def recipe(self, steps: int, rate: Any) -> opx.Recipe:
        return opx.Recipe(
            self.benchmark.problem,
            make(self.name, rate),
            self.sampler,
            recovery=opx.NoRecovery(),
            steps=steps,
        )

    def chunk(self, steps: int) -> Any:
        def run(arrays, rate):
            state = eqx.combine(arrays, self.static)
            return eqx.filter(self.recipe(steps, rate)(state)[0], eqx.is_array)

        if steps not in self.chunks:
            traced = jax.jit(run, compiler_options=ORDER)
            self.chunks[steps] = traced.lower(self.arrays, jnp.array(RATE)).compile()
        return self.chunks[steps]

    def advance(self, share: float) -> float:
        """Trains for a chunk, of which the CPU seconds are returned; `share` of the
        time is spent."""
        dear = self.name.rpartition("+")[2] in DEAR
        begun = "+" not in self.name or self.steps >= FIRST
        steps = DEAR_STEPS if dear and begun else STEPS
        run = self.chunk(steps)
        rate = jnp.array(RATE * 0.5 * (1 + math.cos(math.pi * min(share, 1))))
        began = time.process_time()
        self.arrays = jax.block_until_ready(run(self.arrays, rate))
        self.steps += steps
        return time.process_time() - began

    @property
    def state(self) -> opx.TrainingState:
        return eqx.combine(self.arrays, self.static)


def measure(problem: str, name: str, seconds: float, seed: int) -> Curve:
    """Error and loss held out after every chunk, over the CPU time."""
    benchmark = make_benchmark(problem, jnp.float64)
    reference = benchmark.reference()
    validation = held_out(benchmark, jr.key(seed))
    judge = eqx.filter_jit(
        lambda state: (
            benchmark.rel_l2(state.model, reference),
            validation.loss(state, None),
        )
    )
    run, spent, curve = Run(benchmark, name, seed), 0.0, []
    while spent < seconds:
        spent += run.advance(spent / seconds)
        error, loss = map(float, judge(run.state))
        curve.append(
            {"cpu_s": spent, "steps": run.steps, "rel_l2": error, "held_out": loss}
        )
    return curve


def chosen(curve: Curve) -> Curve:
    """The curve of the model that is best so far at points held out."""
    best, out = {"held_out": math.inf, "rel_l2": math.nan}, []
    for here in curve:
        best = here if here["held_out"] < best["held_out"] else best
        out.append(here | {"rel_l2": best["rel_l2"]})
    return out


def draw(curves: dict[str, dict[str, Curve]], path: Path) -> None:
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    width, legend = 4.5 * max(columns, 1.2), 1.1
    figure = Figure(figsize=(width, 3.2 * rows + legend), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (problem, by_name) in zip(axes, curves.items(), strict=False):
        for name, curve in by_name.items():
            points = chosen(curve)
            x, y = [p["cpu_s"] for p in points], [p["rel_l2"] for p in points]
            axis.semilogy(x, y, label=name, linewidth=1)
        axis.set_title(problem)
        axis.set_xlabel("CPU time, s")
    for axis in axes[len(curves) :]:
        axis.remove()
    axes[0].set_ylabel("relative L2 error")
    names = axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=2 * columns, fontsize=8)
    figure.savefig(path, dpi=110)


def table(curves: dict[str, dict[str, Curve]], names: list[str]) -> str:
    """The errors in Markdown, a row an optimizer."""
    lines = ["| optimizer | " + " | ".join(curves) + " |", "|---" * (len(curves) + 1)]
    lines[1] += "|"
    for name in names:
        ends = [chosen(by_name[name])[-1] for by_name in curves.values()]
        cells = [f"{end['rel_l2']:.1e} ({end['steps']})" for end in ends]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Curve]]:
    curves: dict[str, dict[str, Curve]] = {}
    for problem in options.problems:
        for name in options.optimizers:
            path = folder / f"{problem}.{name}.json"
            if not path.exists():
                curve = measure(problem, name, options.cpu_seconds, options.seed)
                path.write_text(json.dumps(curve) + "\n")
            curve = json.loads(path.read_text())
            curves.setdefault(problem, {})[name] = curve
            end = chosen(curve)[-1]
            print(
                f"{problem:16}{name:28}{end['rel_l2']:10.2e}{end['cpu_s']:8.1f} s"
                f"{end['steps']:8} steps",
                flush=True,
            )
    return curves


def learned(folder: Path) -> dict[str, float]:
    """Of the optimizer that is shipped, in the precision it was trained in."""
    script, path = Path(__file__).with_name("meta_train.py"), folder / "learned.json"
    if not path.exists():
        command = [sys.executable, str(script), "--evaluate", "--json", str(path)]
        subprocess.run(command, check=True)
    found = json.loads(path.read_text())
    return {k: found[k] for k in ("learned.loss_ratio", "learned.step_ratio")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--cpu-seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learned", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        curves = measured(options, folder)
        figures = learned(folder) if options.learned else {}
    print(table(curves, options.optimizers))
    for problem, by_name in curves.items():
        for name, curve in by_name.items():
            end = chosen(curve)[-1]
            for what in ("rel_l2", "cpu_s", "steps"):
                figures[f"{problem}.{name}.{what}"] = end[what]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.figure:
        draw(curves, options.figure)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
