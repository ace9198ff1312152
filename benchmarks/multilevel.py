"""What it is worth to train from coarse to fine, and what the transfer costs.

    python benchmarks/multilevel.py [--seeds 3] [--no-fno] [--json FILE]

A physics-informed network for Burgers' equation (the zoo's, with its exact conditions;
two hidden layers, 512 points that stay, Adam) in float64:

- `transfer.defect`: the largest change of the function from 16 to 64 hidden units,
  relative to its size, over the seeds.
- `transfer.peak_loss_ratio`: the largest loss in the 200 steps after this transfer over
  the loss before it, after 3000 steps of coarse training; the largest of the seeds.
- `transfer.peak_loss_ratio_unscaled`: the same if the steps are not shortened.
- `mlp.time_ratio`: CPU time of direct training of the wide network over that of the
  cascade (3000 steps narrow, 1000 wide), to the lowest error that both reach, where
  direct training gets the time of the cascade. The median of the seeds. Neither
  compilation nor the transfer itself is counted.
- `mlp.rel_l2_cascade`, `mlp.rel_l2_direct`: medians of the lowest errors.

The figures `fno.*` are those of `multilevel_fno.py`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import multilevel_fno
import optax

import opifex as opx
from opifex._cascade.resize import prolongate
from opifex._transfer.widen import Widen
from opifex.neural import MLP
from opifex.zoo import make_benchmark


NARROW, WIDE, COARSE_STEPS, FINE_STEPS = 16, 64, 3000, 1000
BURGERS = make_benchmark("burgers")
RECIPE = opx.Recipe(
    BURGERS.problem,
    optax.adam(2e-3),
    opx.QuasiRandom(BURGERS.problem.domains, {"interior": 512}, shift=False),
    opx.NoRecovery(),
    steps=100,
)


def network(width, seed):
    sizes = (2, width, width, 1)
    return BURGERS.problem.impose(MLP(sizes, key=jr.key(seed), dtype=jnp.float64))


def peak(state, **options):
    """The largest loss of the 200 steps after the transfer, over that before them."""
    fine = _grown(state, **options)
    chunks = []
    opx.fit(RECIPE, fine, num_chunks=2, callbacks=[opx.Collect(chunks.append)])
    loss = opx.join(chunks).loss
    return float(jnp.max(loss) / _loss(state))


def _grown(state, **options):
    like = network(WIDE, 0)
    return prolongate(Widen(), RECIPE.optim, RECIPE.recovery, state, like, **options)


def _loss(state):
    """Of the model as it is: that of the next step of the coarse network."""
    return eqx.filter_jit(RECIPE)(state)[1].loss[0]


def defect(state):
    points = jr.uniform(jr.key(9), (1000, 2), minval=jnp.array([-1.0, 0.0]), maxval=1.0)
    old, new = (jax.vmap(s.model)(points) for s in (state, _grown(state)))
    return float(jnp.max(jnp.abs(new - old)) / jnp.max(jnp.abs(old)))


class Curve:
    """CPU time of the training alone, and the error, every 200 steps."""

    def __init__(self, reference):
        self.reference, self.spent, self.points = reference, 0.0, []

    def run(self, state, num_chunks, *, budget=float("inf")):
        for i in range(num_chunks):
            began = time.process_time()
            state, _ = jax.block_until_ready(_chunk(state))
            self.spent += time.process_time() - began
            if i % 2:
                error = float(BURGERS.rel_l2(state.model, self.reference))
                self.points.append((self.spent, error))
            if self.spent > budget:
                break
        return state

    def time_to(self, error):
        return next((t for t, e in self.points if e <= error), float("nan"))

    @property
    def best(self):
        return min(error for _, error in self.points)


_chunk = eqx.filter_jit(lambda state: RECIPE(state))


def one_seed(seed, reference):
    narrow = RECIPE.init(network(NARROW, seed), key=jr.key(seed))
    wide = RECIPE.init(network(WIDE, seed), key=jr.key(seed))
    for state in (narrow, wide):  # to compile
        jax.block_until_ready(_chunk(state))
    steps = RECIPE.steps
    cascade, direct = Curve(reference), Curve(reference)
    state = cascade.run(narrow, COARSE_STEPS // steps)
    cascade.run(_grown(state), FINE_STEPS // steps)
    direct.run(wide, (COARSE_STEPS + FINE_STEPS) // steps, budget=cascade.spent)
    target = max(cascade.best, direct.best)
    return {
        "transfer.defect": defect(state),
        "transfer.peak_loss_ratio": peak(state),
        "transfer.peak_loss_ratio_unscaled": peak(state, step_ratio=1.0),
        "mlp.time_ratio": direct.time_to(target) / cascade.time_to(target),
        "mlp.rel_l2_cascade": cascade.best,
        "mlp.rel_l2_direct": direct.best,
    }


def figures(seeds):
    reference = BURGERS.reference()
    rows = [one_seed(seed, reference) for seed in range(seeds)]
    over = lambda name: max if name.startswith("transfer.") else statistics.median
    return {name: over(name)([row[name] for row in rows]) for name in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-fno", action="store_true", help="leave out `fno.*`")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    results = figures(options.seeds)
    if not options.no_fno:
        results |= multilevel_fno.figures(options.seeds)
    for name, value in results.items():
        print(f"{name:36}{value:12.4g}")
    if options.json:
        # Of a goal that was never reached there is no figure.
        reached = {k: x for k, x in results.items() if x == x}
        options.json.write_text(json.dumps(reached, indent=2) + "\n")


if __name__ == "__main__":
    main()
