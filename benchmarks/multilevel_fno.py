"""A Fourier operator trained from coarse to fine, against the finest level alone.

    python benchmarks/multilevel_fno.py [--seeds 3] [--json FILE]

The operator is that of Burgers' equation with `nu = 0.01/pi`, whose solutions at time
one have fronts: `fno.fine_energy` is the share of their energy that the modes of the
coarse level cannot hold. Three levels double the modes (6, 12, 24) and the grid (64,
128, 256). The direct run takes all its steps at the finest level. The cascade takes as
many in all, each level half as many as the one before it, so that each costs about the
same; more iterations on coarser levels is the rule of cascadic multigrid (Bornemann and
Deuflhard, Numerische Mathematik 75, 1996). The coarse run takes all of them at the
coarsest level. All have one seed, batch size, optimizer and schedule, in the number of
steps taken so far: Adam, 1e-3, falling along a cosine.

Time is CPU time of the process while it trains, transfers between levels included;
compilation (every program is run once before) and the evaluation of the error are left
out for all alike. Errors are means of the relative L2 error of test functions on the
finest grid, after every chunk, those of coarse networks too. Ratios of times are direct
over cascade, not a number if one of them does not get there; the runs of a round take
turns, in an order that alternates. Medians over the seeds.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import opifex as opx
from opifex._callback.base import AbstractCallback
from opifex._cascade.levels import cascade, Level
from opifex._problem.operator import coarsen, operator_problem
from opifex._transfer.modes import PadModes
from opifex.neural import FNO
from opifex.zoo.operators import burgers_data, energy_above, row_errors


MODES = (6, 12, 24)
GRIDS = (64, 128, 256)
FINEST = 512  # of the solver
NU = 0.01 / np.pi
NUM_TRAIN, NUM_TEST = 1024, 100
WIDTH, BATCH = 32, 20
CHUNK, CHUNKS = 50, 56  # 2800 steps, 55 epochs
RUNS = {"direct": (0, 0, 56), "cascade": (32, 16, 8), "coarse": (56, 0, 0)}
GOALS = (0.1, 0.05)


class Passed(NamedTuple):
    """After a chunk: the CPU time of training so far, and the error."""

    seconds: float
    error: float


class Watched(AbstractCallback[Any]):
    """Appends to `passed` after every chunk; its own time is not counted."""

    passed: list[Passed]
    problem: Any
    test: opx.Pairs

    def init(self, state, num_chunks):
        del state, num_chunks
        return time.process_time()

    def on_chunk(self, began, state, infos):
        del infos
        jax.block_until_ready(state.step)
        before = self.passed[-1].seconds if self.passed else 0.0
        seconds = before + time.process_time() - began
        error = float(row_errors(self.problem, state.model, self.test).mean())
        self.passed.append(Passed(seconds, error))
        return time.process_time(), False

    def close(self, memory, state):
        del memory, state


def make_levels(data: dict[str, np.ndarray]) -> list[Level]:
    """From coarse to fine. One optimizer, and one normalisation for all of them."""
    optim = optax.adam(optax.cosine_decay_schedule(1e-3, CHUNK * CHUNKS))
    train = {k: data[k][:NUM_TRAIN].astype(np.float32) for k in ("inputs", "targets")}
    problem = operator_problem(train["inputs"], train["targets"])
    levels = []
    for modes, grid in zip(MODES, GRIDS, strict=True):
        thin = [coarsen(x, FINEST // grid, periodic=True) for x in train.values()]
        sampler = opx.Minibatch(*map(jnp.asarray, thin), batch_size=BATCH)
        recipe = opx.Recipe(problem, optim, sampler, steps=CHUNK)
        model = FNO(1, 1, 1, width=WIDTH, modes=modes, key=jr.key(0), dtype=jnp.float32)
        levels.append(Level(recipe, model, 1))
    return levels


def train(
    levels: list[Level], chunks: tuple[int, ...], seed: int, test
) -> list[Passed]:
    """One run, with so many chunks at each level."""
    passed: list[Passed] = []
    key = jr.key(seed)
    chosen = [
        replace(level, num_chunks=n, model=_fresh(level.model, key))
        for level, n in zip(levels, chunks, strict=True)
        if n
    ]
    watched = Watched(passed, levels[-1].recipe.problem, test)
    cascade(chosen, PadModes(), key=jr.fold_in(key, 1), callbacks=[watched])
    return passed


def _fresh(model: FNO, key) -> FNO:
    return FNO(1, 1, 1, width=WIDTH, modes=model.modes, key=key, dtype=jnp.float32)


def seconds_to(goal: float, passed: list[Passed]) -> float:
    """The time of training until an error is reached; not a number if never."""
    return next((p.seconds for p in passed if p.error <= goal), math.nan)


def figures(seeds: int = 3) -> dict[str, float]:
    """The figures by name, see above; prints a line for every run."""
    data = burgers_data(NUM_TRAIN + NUM_TEST, grid=FINEST, nu=NU, steps=500)
    rows = {k: data[k][NUM_TRAIN:] for k in ("inputs", "targets")}
    thin = {k: coarsen(x, FINEST // GRIDS[-1], periodic=True) for k, x in rows.items()}
    test = opx.Pairs(*(jnp.asarray(x, jnp.float32) for x in thin.values()))
    levels = make_levels(data)
    for chunks in RUNS.values():  # to compile
        train(levels, tuple(min(n, 1) for n in chunks), 0, test)
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        order = list(RUNS)[:: 1 if seed % 2 else -1]
        runs = {name: train(levels, RUNS[name], seed, test) for name in order}
        for name, value in _compare(runs).items():
            found.setdefault(name, []).append(value)
        for name, passed in runs.items():
            times = ", ".join(f"{seconds_to(g, passed):.1f} s to {g}" for g in GOALS)
            seconds, error = passed[-1]
            whole = f"{error:.4f} in the end, after {seconds:.1f} s"
            print(f"seed {seed}: {name}: {times}, {whole}", flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return medians | {"fno.fine_energy": energy_above(rows["targets"], MODES[0])}


def _compare(runs: dict[str, list[Passed]]) -> dict[str, float]:
    ratios = {
        f"fno.time_ratio_{goal}": seconds_to(goal, runs["direct"])
        / seconds_to(goal, runs["cascade"])
        for goal in GOALS
    }
    last = {name: passed[-1] for name, passed in runs.items()}
    return ratios | {
        "fno.time_ratio_all": last["direct"].seconds / last["cascade"].seconds,
        "fno.final_ratio_coarse": last["coarse"].error / last["cascade"].error,
        "fno.final_ratio_direct": last["direct"].error / last["cascade"].error,
        "fno.final_error": last["cascade"].error,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = figures(options.seeds)
    print(json.dumps(found, indent=2))
    if options.json:
        # Of a goal that was never reached there is no figure.
        reached = {k: x for k, x in found.items() if x == x}
        options.json.write_text(json.dumps(reached, indent=2) + "\n")


if __name__ == "__main__":
    main()
