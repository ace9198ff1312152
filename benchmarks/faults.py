"""What a run survives, and what the guard costs.

    python benchmarks/faults.py [--seeds 9] [--rounds 25] [--json FILE]

A PINN of Poisson's equation in one dimension (1-16-16-1, 64 points drawn anew at every
step, Adam with a cosine schedule, 2000 steps in chunks of 20, `Backtrack()`), with a
fault at one step, at two in a row, or at a step before there is any experience. Every
run is compared with that of the same program and seed in which no fault fires. What is
no fault, one batch of points mirrored at the middle, which are as good as the others,
shows by how much such a run varies with anything that happens in it. A table in
Markdown is printed, and with `--json`:

- `FAULT.survived`: the share of runs that came to their end with finite parameters.
- `FAULT.error_ratio`: the final error over that of the clean run, median of the seeds.
- `FAULT.worst_ratio`: the same, of the worst seed.
- `FAULT.steps_lost`: the largest share of steps whose update was discarded.
- `guard.cost`: CPU time of a step of Burgers' equation (zoo, Adam, 4096 points) with
  `Backtrack()` over that with `NoRecovery()`; interleaved, median.
"""

import argparse
import functools
import json
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _measure import median_ratios

import opifex as opx
from opifex.neural import MLP
from opifex.zoo import make_benchmark
from tests.faults.inject import Faulty, Firing, Spoiling


STEPS, CHUNK = 2000, 20
ONE, TWO, EARLY = (777, -1), (777, 778), (3, -1)
# What is spoiled, by what, and at which steps.
CASES = {
    "data NaN": ("data", np.nan, ONE),
    "data Inf": ("data", np.inf, ONE),
    "gradient NaN": ("gradient", np.nan, ONE),
    "gradient Inf": ("gradient", np.inf, ONE),
    "gradient 1e6 times": ("gradient", 1e6, ONE),
    "loss 1e6 times": ("loss", 1e3, ONE),  # of the residual
    "parameters NaN": ("parameters", np.nan, ONE),
    "parameters Inf": ("parameters", np.inf, ONE),
    "parameters 1e6 times": ("parameters", 1e6, ONE),
    "data NaN, two steps": ("data", np.nan, TWO),
    "gradient 1e6 times, two steps": ("gradient", 1e6, TWO),
    "data NaN, at step 3": ("data", np.nan, EARLY),
    "gradient 1e6 times, at step 3": ("gradient", 1e6, EARLY),
    "no fault: points mirrored": ("data", -1.0, ONE),
    "no fault: points mirrored, at step 3": ("data", -1.0, EARLY),
}


@opx.residual("x")
def poisson(u, x):
    return u.xx + jnp.pi**2 * jnp.sin(jnp.pi * x)


PROBLEM = opx.PDE(
    opx.Interval(-1.0, 1.0), poisson, [opx.Dirichlet("boundary", 0.0, exact=True)]
)

# One for all runs, as functions that are made anew would be compiled anew.
OPTIM = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))


def trained(
    where: str, value: float, steps: tuple[int, int], seed: int
) -> tuple[bool, float, int]:
    """Whether the run survived, its final error, and how many steps it lost."""
    # Both are arrays of the recipe, so that all runs are of one program.
    steps, spoiled = jnp.array(steps, jnp.int32), jnp.array(value)
    points = Firing(opx.Uniform(PROBLEM.domains, {"interior": 64}), steps)
    recipe = opx.Recipe(Faulty(PROBLEM, spoiled, where), OPTIM, points, steps=CHUNK)
    state = recipe.init(model_of(seed), key=jr.key(seed))
    chunk = Spoiling(recipe, steps, spoiled) if where == "parameters" else recipe
    state = opx.fit(chunk, state, num_chunks=STEPS // CHUNK, throw=False)
    x = jnp.linspace(-1, 1, 501)
    u = jax.vmap(state.model)(x[:, None])[:, 0]
    error = float(jnp.linalg.norm(u - jnp.sin(jnp.pi * x)) / jnp.sqrt(250.0))
    counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
    ended = bool(state.progress.result == opx.RESULTS.successful)
    # The optimizer's count goes back with the rest.
    return ended and np.isfinite(error), error, STEPS - int(counts[0])


def model_of(seed: int):
    return PROBLEM.impose(MLP((1, 16, 16, 1), key=jr.key(seed)))


@functools.cache
def clean(where: str, seed: int) -> float:
    return trained(where, 1e6, (-1, -1), seed)[1]


def survival(seeds: int) -> dict[str, float]:
    figures = {}
    print("| fault | tried | survived | final error / clean | worst | steps lost |")
    print("|---|---|---|---|---|---|")
    for kind, (where, value, steps) in CASES.items():
        runs = [trained(where, value, steps, seed) for seed in range(seeds)]
        survived = sum(run[0] for run in runs)
        ratios = [run[1] / clean(where, i) for i, run in enumerate(runs)]
        ratio, worst = statistics.median(ratios), max(ratios)
        lost = max(run[2] for run in runs) / STEPS
        cells = (kind, seeds, survived, f"{ratio:.3f}", f"{worst:.3f}")
        print("|", *(f"{cell} |" for cell in cells), f"{100 * lost:.1f} % |")
        name = kind.replace(",", "").replace(":", "").replace(" ", "_")
        figures |= {f"{name}.survived": survived / seeds, f"{name}.steps_lost": lost}
        figures |= {f"{name}.error_ratio": ratio, f"{name}.worst_ratio": worst}
    return figures


def cost(rounds: int) -> float:
    benchmark = make_benchmark("burgers")
    points = {"interior": jr.uniform(jr.key(1), (4096, 2))}

    def run(recovery):
        recipe = opx.Recipe(
            benchmark.problem,
            optax.adam(1e-3),
            opx.Fixed(points),
            recovery,
            steps=400,
        )
        state = recipe.init(benchmark.model(jr.key(0), jnp.float64), key=jr.key(0))
        return lambda: opx.fit(recipe, state, num_chunks=1)

    runs = {"plain": run(opx.NoRecovery()), "guarded": run(opx.Backtrack())}
    return median_ratios(runs, "plain", rounds)["guarded"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    figures = survival(options.seeds)
    figures["guard.cost"] = cost(options.rounds)
    print(f"a step with the guard over one without: {figures['guard.cost']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
