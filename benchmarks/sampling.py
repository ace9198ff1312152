"""What it is worth to place points by the residual.

    python benchmarks/sampling.py [--seeds 10] [--burgers-seeds 3] [--json FILE]

Diffusion with 30 points, as Wu et al. (2023) do it: `u_t = u_xx + f` on `[-1, 1] x
[0, 1]`, exactly solved by `sin(pi x) exp(-t)`; the network 2-32-32-32-1 with tanh and
the uniform initialization of Glorot, conditions by construction, in single precision;
Adam with a rate of 1e-3.

- `diffusion.fixed`: 30 uniform points, 15000 steps.
- `diffusion.random_r`: the same, drawn anew every 100 steps.
- `diffusion.rad`: 30 points; 10000 steps, and 40 times 1000 with points drawn from
  10000 candidates by `k = c = 1`.
- `diffusion.rar_d`: 10 points; the same steps, with one point added each time by
  `k = 2`, `c = 0`, so that there are 50 at the end.

All are medians of the relative L2 error over the seeds, on a grid of 101 x 101.

Burgers' equation, `nu = 0.01 / pi`, with 2000 points and 2500 steps: network and
optimizer are those of the zoo.

- `burgers.fixed`, `burgers.rad`: the same medians, for a fixed Sobol sequence and for
  points that are drawn by `k = c = 1` from 20000 candidates every 250 steps.
- `burgers.rad_gain`: the first of these over the second.
- `cpu_s`: CPU time of all, compilation included.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

import opifex as opx
from opifex._sampler.rard import RARD
from opifex.neural.mlp import MLP
from opifex.zoo import make_benchmark, OPTIMIZERS
from opifex.zoo.references import diffusion_source


@opx.residual("x t")
def diffusion(u, x, t):
    return u.t - u.xx - diffusion_source(x, t)


class Ansatz(eqx.Module):
    """Meets the conditions as Wu et al. have it: `sin(pi x) + (1 - x^2) t network`."""

    network: MLP

    def __call__(self, point):
        x, t = point
        return jnp.sin(jnp.pi * x) + (1 - x**2) * t * self.network(point)


def model(key):
    network = MLP((2, 32, 32, 32, 1), key=key)
    draw = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
    keys = jr.split(key, len(network.weights))
    pairs = zip(keys, network.weights, strict=True)
    weights = [draw(k, w.shape, w.dtype) for k, w in pairs]
    return Ansatz(eqx.tree_at(lambda n: n.weights, network, weights))


DOMAIN = opx.Interval(-1, 1, jnp.float32) * opx.Interval(0, 1, jnp.float32)
PROBLEM = opx.PDE(DOMAIN, diffusion, free=("left", "right", "initial"))
CANDIDATES = {"interior": 10000}
NEVER = 10**6
BURGERS_STEPS = 2500


def rad(points, candidates, **options):
    return opx.RAD(PROBLEM.domains, {"interior": points}, candidates, **options)


def rar_d(every):
    return RARD(
        PROBLEM.domains,
        {"interior": 50},
        CANDIDATES,
        num_initial={"interior": 10},
        num_new={"interior": 1},
        every=every,
    )


# By method, the phases: a sampler, steps in a chunk, and how many chunks. What is due
# at the end of a phase is drawn for the next one.
METHODS = {
    "fixed": [(rad(30, {}, every=NEVER), 1000, 15)],
    "random_r": [(rad(30, {}), 100, 150)],
    "rad": [
        (rad(30, CANDIDATES, every=10), 1000, 10),
        (rad(30, CANDIDATES), 1000, 40),
    ],
    "rar_d": [(rar_d(10), 1000, 10), (rar_d(1), 1000, 40)],
}


def train(problem, optim, phases, model, keys, recovery):
    """The models of all seeds after some phases."""
    state: Any = None
    for sampler, steps, chunks in phases:
        recipe = opx.Recipe(problem, optim, sampler, recovery, steps=steps)
        if state is None:
            # What is not an array is the same for all.
            start = lambda key, r=recipe: r.init(model(jr.fold_in(key, 1)), key=key)
            state = eqx.filter_vmap(start)(keys)
        state = opx.fit(opx.Ensemble(recipe), state, num_chunks=chunks)
    return state.model


def diffusion_errors(models):
    x, t = jnp.meshgrid(jnp.linspace(-1, 1, 101), jnp.linspace(0, 1, 101))
    points = jnp.stack([x.ravel(), t.ravel()], axis=1)
    truth = jnp.sin(jnp.pi * points[:, 0]) * jnp.exp(-points[:, 1])

    def error(model):
        wrong = jax.vmap(model)(points)[:, 0] - truth
        return jnp.linalg.norm(wrong) / jnp.linalg.norm(truth)

    return eqx.filter_vmap(error)(models).tolist()


def burgers_errors(kind, seeds):
    burgers, dtype = make_benchmark("burgers", jnp.float64), jnp.float64
    sets = burgers.domains, {"interior": 2000}
    if kind == "rad":
        sampler = opx.RAD(*sets, {"interior": 20000})
    else:
        sampler = opx.QuasiRandom(*sets, shift=False)
    optim = OPTIMIZERS[burgers.optimizer](BURGERS_STEPS)
    phases = [(sampler, 250, BURGERS_STEPS // 250)]
    model = lambda key: burgers.model(key, dtype)
    keys = jr.split(jr.key(0), seeds)
    models = train(burgers.problem, optim, phases, model, keys, opx.Backtrack())
    reference = burgers.reference()
    return eqx.filter_vmap(lambda m: burgers.rel_l2(m, reference))(models).tolist()


def report(name, errors, began):
    shown = " ".join(f"{error:.2e}" for error in sorted(errors))
    median = statistics.median(errors)
    spent = time.process_time() - began
    print(f"{name:20}{median:10.3e}   CPU {spent:5.0f} s   of {shown}", flush=True)
    return median


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--burgers-seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures, start = {}, time.process_time()
    keys = jr.split(jr.key(0), options.seeds)
    for name, phases in METHODS.items():
        began, optim = time.process_time(), optax.adam(1e-3)
        models = train(PROBLEM, optim, phases, model, keys, opx.NoRecovery())
        name = f"diffusion.{name}"
        figures[name] = report(name, diffusion_errors(models), began)
    jax.config.update("jax_enable_x64", True)
    for kind in ("fixed", "rad"):
        began, name = time.process_time(), f"burgers.{kind}"
        errors = burgers_errors(kind, options.burgers_seeds)
        figures[name] = report(name, errors, began)
    figures["burgers.rad_gain"] = figures["burgers.fixed"] / figures["burgers.rad"]
    figures["cpu_s"] = time.process_time() - start
    print(f"burgers.rad_gain    {figures['burgers.rad_gain']:10.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
