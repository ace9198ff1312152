"""What a conservation law is good for: the drift of the energy of a wave.

    python benchmarks/conservation.py [--steps 400] [--json FILE]

The wave equation of the zoo, `u_tt = 4 u_xx` on a string that is held at both ends,
trained twice from the same start on the same points for so few steps that it is not
converged: without and with the law that its energy, half the integral of `u_t^2 + 4
u_x^2`, is conserved (a soft term).

- `wave.drift_without`, `wave.drift_with`: the largest difference of the energy from
  that at the start, over that.
- `wave.drift_ratio`: the first over the second.
- `wave.rel_l2_without`, `wave.rel_l2_with`: errors of the solutions.
- `wave.cpu_s_without`, `wave.cpu_s_with`: CPU time, compilation included.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import opifex as opx
from opifex._problem.conservation import Conserved
from opifex._problem.pde import PDE
from opifex.derivatives import residual
from opifex.zoo import make_benchmark, OPTIMIZERS
from opifex.zoo.references import WAVE_SPEED


@residual("x t")
def energy_density(u, x, t):
    return 0.5 * (u.t**2 + WAVE_SPEED**2 * u.x**2)


# The energy is 5 pi^2, and enters by its square.
ENERGY = Conserved(energy_density, name="energy", num_points=64, weight=0.1)


def trained(wave, problem, steps, seed):
    """The model after so many steps."""
    domains, num_points = problem.domains, dict(wave.num_points)
    if "times" in domains:
        num_points["times"] = 32
    sampler = opx.QuasiRandom(domains, num_points)
    optim = OPTIMIZERS["adam+ssbroyden"](steps)
    recipe = opx.Recipe(problem, optim, sampler, steps=100)
    model_key, key = jr.split(jr.key(seed))
    state = recipe.init(wave.model(model_key, jnp.float64), key=key)
    return opx.fit(recipe, state, num_chunks=steps // 100).model


def relative_drift(domain, model):
    """The largest difference of the energy from that at the start, over that."""
    times = jnp.linspace(0.0, 1.0, 101)
    fine = dataclasses.replace(ENERGY, num_points=200)
    energy = eqx.filter_jit(fine.quantity)(domain, model, times)
    return float(jnp.max(jnp.abs(energy / energy[0] - 1)))


def measure(steps, seed=0):
    wave = make_benchmark("wave")
    reference, plain = wave.reference(), wave.problem
    law = PDE(plain.domain, plain.equation, plain.conditions, conserved=[ENERGY])
    figures = {}
    for name, problem in (("without", plain), ("with", law)):
        began = time.process_time()
        model = trained(wave, problem, steps, seed)
        figures[f"wave.cpu_s_{name}"] = time.process_time() - began
        figures[f"wave.drift_{name}"] = relative_drift(plain.domain, model)
        figures[f"wave.rel_l2_{name}"] = float(wave.rel_l2(model, reference))
    ratio = figures["wave.drift_without"] / figures["wave.drift_with"]
    return figures | {"wave.drift_ratio": ratio}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    figures = measure(options.steps, options.seed)
    for name, value in sorted(figures.items()):
        print(f"{name:28}{value:12.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
