"""A run that is cut, written to the disk and read again is the run that was not."""

import functools
import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest

import opifex as opx
from opifex._optimizer.factory import named_optimizer, OPTIMIZERS
from opifex.neural import MLP
from opifex.optimization import MetaOptimizer

from .helpers import assert_same_bits, DOMAINS, WEIGHTINGS


N, STEPS = 2, 2  # chunks before the cut and after it, and steps of a chunk
COUNTS, MORE = {"interior": 6, "boundary": 2}, {"interior": 12}
POINTS = {
    "interior": jnp.linspace(-0.9, 0.9, 6)[:, None],
    "boundary": jnp.array([[-1.0], [1.0]]),
}
X = jnp.linspace(-1, 1, 8)[:, None]

GROWING = {"num_initial": {"interior": 2}, "num_new": {"interior": 1}}
SAMPLERS = {
    "uniform": lambda: opx.Uniform(DOMAINS, COUNTS),
    "sobol": lambda: opx.QuasiRandom(DOMAINS, COUNTS),
    "importance": lambda: opx.Importance(DOMAINS, COUNTS, MORE),
    "r3": lambda: opx.R3(DOMAINS, COUNTS, ("interior",)),
    "rad": lambda: opx.RAD(DOMAINS, COUNTS, MORE),
    "rard": lambda: opx.RARD(DOMAINS, COUNTS, MORE, **GROWING),
    "rarg": lambda: opx.RARG(DOMAINS, COUNTS, MORE, **GROWING),
    "minibatch": lambda: opx.Minibatch(X, jnp.sin(3 * X), 4),
    "data_parallel": lambda: opx.DataParallel(
        opx.Uniform(DOMAINS, COUNTS), jax.devices()
    ),
    "fixed": lambda: opx.Fixed(POINTS),
}
MORE_WEIGHTINGS = {
    "multipliers": lambda: opx.Multipliers((("interior", "boundary"),), every=1),
}
RECOVERIES = {
    "backtrack": lambda: opx.Backtrack(clips=True, max_grad_norm=10.0),
    "skip": opx.Skip,
    "none": opx.NoRecovery,
}
MORE_OPTIMIZERS = {
    # The cut falls into the second phase.
    "phases": lambda: opx.phases((optax.adam(1e-3), 3), (opx.ssbroyden(), 3)),
    "scale_by_soap": lambda: optax.chain(opx.scale_by_soap(), optax.scale(-1e-3)),
    "learned": MetaOptimizer,
}
# Every choice is in one row at least; a row is one program to compile.
ROWS = """
    uniform        grad_norm_balance     backtrack  adam
    sobol          annealing             skip       adamw
    importance     ones                  none       adabelief
    r3             grad_norm             backtrack  adagrad
    rad            ntk                   skip       adamax
    rard           relobralo             none       amsgrad
    rarg           soft_adapt            backtrack  lamb
    minibatch      ones                  skip       lion
    data_parallel  causal                none       muon
    fixed          self_adaptive         backtrack  nadam
    fixed          residual_attention    skip       nadamw
    fixed          augmented_lagrangian  none       radam
    sobol          product               backtrack  rmsprop
    uniform        multipliers           skip       sgd
    uniform        scheduled             none       soap
    r3             static                backtrack  yogi
    rad            ones                  backtrack  scale_by_soap
    rard           ones                  backtrack  learned
    fixed          ones                  backtrack  bfgs
    fixed          static                skip       ssbfgs
    fixed          ones                  none       lbfgs
    fixed          ones                  backtrack  levenberg_marquardt
    fixed          static                skip       engd
    fixed          ones                  none       nncg
    fixed          ones                  backtrack  ssbroyden
    fixed          static                skip       phases
"""


class Sine(opx.AbstractResidualProblem):
    """u = sin(pi x), given at points; no derivatives, which take long to compile."""

    def residuals(self, model, batch):
        return {
            name: jax.vmap(model)(x)[:, 0] - jnp.sin(jnp.pi * x[:, 0])
            for name, x in batch.items()
        }


def made(row):
    """What is named in a row."""
    sampler, weighting, recovery, optim = row.split()
    more = MORE_OPTIMIZERS.get(optim)
    rate = None if more or OPTIMIZERS[optim].searches else 1e-3
    return (
        SAMPLERS[sampler](),
        (WEIGHTINGS | MORE_WEIGHTINGS)[weighting](),
        RECOVERIES[recovery](),
        more() if more else named_optimizer(optim, rate),
    )


def recipe_of(row):
    sampler, weighting, recovery, optim = made(row)
    problem = opx.Supervised() if "minibatch" in row else Sine()
    return opx.Recipe(
        *(problem, optim, sampler, recovery), weighting=weighting, steps=STEPS
    )


def net(seed, width=3):
    return MLP((1, width, 1), key=jr.key(seed))


def both(run, start, folder):
    """What a run without interruption ends with, and one that was cut."""
    whole = run(start(0), 2 * N)
    run(start(0), N, opx.Checkpoint(folder))
    # What it is read into has nothing of what was written.
    return whole, run(opx.restore(folder, start(1)), N, opx.Checkpoint(folder))


def of_row(row, folder):
    recipe = recipe_of(row)
    start = lambda seed: recipe.init(net(seed), key=jr.key(seed))
    run = lambda s, n, *callbacks: opx.fit(recipe, s, num_chunks=n, callbacks=callbacks)
    return both(run, start, folder)


def of_ensemble(folder):
    recipe = recipe_of("rad ones backtrack adam")
    one = lambda key: recipe.init(MLP((1, 3, 1), key=key), key=key)
    start = lambda seed: opx.ensemble(one, jr.split(jr.key(seed), 2))
    run = lambda s, n, *callbacks: opx.fit(
        opx.Ensemble(recipe), s, num_chunks=n, callbacks=callbacks
    )
    return both(run, start, folder)


class Stop(opx.AbstractCallback[None]):
    """Asks to stop after some chunk."""

    epoch: int

    def init(self, state, num_chunks):
        pass

    def on_chunk(self, memory, state, infos):
        return memory, int(jnp.max(state.progress.epoch)) >= self.epoch

    def close(self, memory, state):
        pass


@functools.cache
def two_levels():
    """Levels of three chunks, and what an uninterrupted run ends with."""
    recipe = recipe_of("uniform ones skip adam")
    levels = [opx.Level(recipe, net(0, width), num_chunks=3) for width in (3, 6)]
    return levels, opx.cascade(levels, opx.Widen(), key=jr.key(0))


def of_cascade(epoch, folder):
    levels, whole = two_levels()
    run = lambda *callbacks: opx.cascade(
        levels, opx.Widen(), key=jr.key(0), callbacks=callbacks, directory=folder
    )
    run(Stop(epoch))
    return whole, run()


class Distance(eqx.Module):
    """A validation loss that is lowest after a chunk that the key of a member names."""

    def __call__(self, state, infos):
        best = jnp.array([2, 4], jnp.int32)[jr.key_data(state.key)[-1]]
        return jnp.abs(state.progress.epoch - best).astype(float)


def descends_and_then_climbs(count):
    return jnp.where(count < STEPS, 1e-2, -1e-2)


def of_best(members, validated, every, folder):
    """Cut after the third chunk, when the best is behind it, and ended early."""
    recipe = recipe_of("fixed ones skip sgd")
    recipe = replace(recipe, optim=optax.sgd(descends_and_then_climbs))
    start = lambda seed: recipe.init(net(seed), key=jr.key(seed))
    chunk = recipe
    if members > 1:
        chunk, keys = opx.Ensemble(recipe), jnp.stack([jr.key(0), jr.key(1)])
        start = lambda seed: opx.ensemble(
            lambda key: recipe.init(net(seed), key=key), keys
        )
    validation = opx.Validation(Distance(), patience=3) if validated else None

    def run(state, num_chunks, place):
        store = opx.Checkpoint(folder / place, every=every, keep_best=0, keep=1)
        return opx.fit(
            chunk, state, num_chunks=num_chunks, validation=validation,
            callbacks=[store, Stop(10 if validated else 6)],
        )  # fmt: skip

    whole = run(start(0), 20, "whole")
    run(start(0), 3, "cut")
    resumed = run(opx.restore(folder / "cut", start(9)), 17, "cut")
    assert whole.step.tolist() == ([2 * STEPS, 4 * STEPS] if members > 1 else 2 * STEPS)
    ends = [sorted(folder.glob(f"{x}/[0-9]*"))[-1] for x in ("whole", "cut")]
    one, other = (json.loads((x / "manifest/metadata").read_text()) for x in ends)
    assert one == other and one["best"]["sha256"] is not None
    return whole, resumed


CASES: dict[str, Callable] = {
    "-".join(row.split()): lambda folder, row=row: of_row(row, folder)
    for row in ROWS.strip().splitlines()
} | {
    "ensemble": of_ensemble,
    "in_the_first_level": lambda folder: of_cascade(1, folder),
    "between_levels": lambda folder: of_cascade(3, folder),
    "in_the_second_level": lambda folder: of_cascade(5, folder),
    "best_by_validation": lambda folder: of_best(1, True, 1, folder),
    "best_by_training_loss": lambda folder: of_best(1, False, 3, folder),
    "best_of_each_member": lambda folder: of_best(2, True, 2, folder),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case, tmp_path):
    whole, resumed = case(tmp_path)
    assert_same_bits(resumed, whole)


@pytest.mark.parametrize(
    "base", [opx.AbstractSampler, opx.AbstractWeighting, opx.AbstractRecovery]
)
def test_every_choice_is_resumed(base):
    folder = base.__module__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(folder).__path__):
        importlib.import_module(f"{folder}.{module.name}")
    used = {type(x) for row in ROWS.strip().splitlines() for x in made(row)}
    known = {
        kind
        for kind in descendants(base)
        if kind.__module__.startswith(folder) and not kind.__name__.startswith("Abst")
    }
    assert known and known <= used, f"ROWS lacks {known - used}"


def descendants(kind):
    direct = kind.__subclasses__()
    return set(direct).union(*map(descendants, direct))


def test_every_optimizer_is_resumed():
    used = {row.split()[3] for row in ROWS.strip().splitlines()}
    exported = {
        name
        for name, value in vars(opx).items()
        if (getattr(value, "__module__", None) or "").startswith("opifex._optimizer.")
        and not isinstance(value, type)
    }
    assert "ssbroyden" in exported and exported | OPTIMIZERS.keys() <= used
