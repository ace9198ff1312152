"""A run that is cut, written to the disk and read again is the run that was not."""

import importlib
import json
import os
import pkgutil
import signal
from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._optimizer.factory import named_optimizer, OPTIMIZERS
from opifex._weighting.augmented_lagrangian import AugmentedLagrangian
from opifex.neural import MLP
from opifex.optimization import MetaOptimizer

from .helpers import assert_same_bits, bits, DOMAINS, Sine, WEIGHTINGS


N, STEPS = 2, 2  # chunks before the cut and after it, and steps of a chunk
COUNTS, MORE = {"interior": 6, "boundary": 2}, {"interior": 12}
POINTS = {
    "interior": jnp.linspace(-0.9, 0.9, 6)[:, None],
    "boundary": jnp.array([[-1.0], [1.0]]),
}
X = jnp.linspace(-1, 1, 8)[:, None]

GROWING = {"num_initial": {"interior": 2}, "num_new": {"interior": 1}}
SAMPLERS = {
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
}
WEIGHTINGS = WEIGHTINGS | {
    "multipliers": lambda: opx.Multipliers((("interior", "boundary"),), every=1),
    "augmented_lagrangian": lambda: AugmentedLagrangian(("boundary",), every=1),
}
FIRST_ORDER = {
    name: named_optimizer(name, 1e-3)
    for name, entry in OPTIMIZERS.items()
    if not entry.searches
} | {
    "scale_by_soap": optax.chain(opx.scale_by_soap(), optax.scale(-1e-3)),
    "learned": MetaOptimizer(),
}
SECOND_ORDER = {
    name: named_optimizer(name, None)
    for name, entry in OPTIMIZERS.items()
    if entry.searches
}


class Several(opx.AbstractSampler):
    """Each hands out a part of the batch."""

    parts: dict[str, opx.AbstractSampler]

    def init(self, key):
        return {name: part.init(key) for name, part in self.parts.items()}

    def batch(self, state, key, step):
        return {n: part.batch(state[n], key, step) for n, part in self.parts.items()}

    def resample(self, state, problem, model, key):
        return {
            name: part.resample(state[name], Sine(), model, key)
            for name, part in self.parts.items()
        }


class OnEach(opx.AbstractProblem):
    """The sine, on the points or the pairs of each of several samplers."""

    def terms(self, model, batch, key):
        total = {}
        for name, part in batch.items():
            problem = Sine() if isinstance(part, dict) else opx.Supervised()
            terms, _ = problem.terms(model, part, key)
            total |= {f"{name}/{term}": value for term, value in terms.items()}
        return total, opx.Aux()


class Leaves(eqx.Module):
    """A network that has a matrix for every optimizer."""

    matrices: dict[str, jax.Array]

    def __call__(self, x):
        stack = jnp.stack(list(self.matrices.values()))
        return jnp.mean(jnp.tanh(stack @ jnp.append(x, 0.5)))[None]


def by_name(params):
    return Leaves({name: name for name in params.matrices})


def second_order():
    """Phases of two steps each, so that every cut falls into another one of them."""
    return [(optim, STEPS) for optim in SECOND_ORDER.values()]


def leaves(seed):
    keys = jr.split(jr.key(seed), len(FIRST_ORDER))
    draw = lambda key: jr.normal(key, (2, 2))
    return Leaves({n: draw(k) for n, k in zip(FIRST_ORDER, keys, strict=True)})


def net(seed, width=3):
    return MLP((1, width, 1), key=jr.key(seed))


SGD, FIXED = optax.sgd(1e-3), opx.Fixed(POINTS)
# Every choice is in one of them: a recipe is a program to compile.
RECIPES = {
    "samplers": lambda: opx.Recipe(
        OnEach(), SGD, Several({n: make() for n, make in SAMPLERS.items()}), opx.Skip()
    ),
    "weightings": lambda: opx.Recipe(
        *(Sine(), SGD, FIXED, opx.NoRecovery()),
        weighting=opx.Product(*(make() for make in WEIGHTINGS.values())),
    ),
    "first_order": lambda: opx.Recipe(
        *(Sine(), optax.partition(FIRST_ORDER, by_name)),
        *(FIXED, opx.Backtrack(clips=True, max_grad_norm=10.0)),
    ),
    "second_order": lambda: opx.Recipe(
        *(Sine(), opx.phases((optax.adam(1e-3), 1), *second_order())),
        *(FIXED, opx.Backtrack()),
    ),
}


def placed(state):
    """Where what is read lies too, so that the chunk is compiled once for both."""
    put = lambda x: jax.device_put(x, jax.devices()[0]) if eqx.is_array(x) else x
    return jtu.tree_map(put, state)


def zeros(state):
    """A state of which nothing is left but its shapes."""

    def zero(x):
        if not eqx.is_array(x):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jr.wrap_key_data(np.zeros_like(jr.key_data(x)))
        return jnp.asarray(np.zeros(x.shape, x.dtype))

    return jtu.tree_map(zero, state)


def assert_moved(start, state, name):
    """Every weighting and every optimizer had something to be written."""
    parts = {
        "weightings": lambda s: zip(WEIGHTINGS, s.weighting_state, strict=True),
        "first_order": lambda s: s.opt_state.inner_states.items(),
        "second_order": lambda s: enumerate(s.opt_state.inner),
    }
    of = parts.get(name, lambda s: ())
    for (part, one), (_, other) in zip(of(start), of(state), strict=True):
        pairs = list(zip(bits(one), bits(other), strict=True))
        assert not pairs or any(np.any(a != b) for a, b in pairs), part


def of_recipe(name, folder):
    recipe = replace(RECIPES[name](), steps=STEPS)
    model = leaves(0) if name == "first_order" else net(0)
    start = placed(recipe.init(model, key=jr.key(0)))
    run = lambda s, n, *callbacks: opx.fit(recipe, s, num_chunks=n, callbacks=callbacks)
    cuts = [1] * len(SECOND_ORDER) if name == "second_order" else [N]
    whole, state = run(start, sum(cuts) + N), start
    for num_chunks in cuts:
        run(state, num_chunks, opx.Checkpoint(folder, asynchronous=False))
        # What it is read into has nothing of what was written.
        state = opx.restore(folder, zeros(start))
    assert_moved(start, state, name)
    return whole, run(state, N)


class Stop(opx.AbstractCallback[None]):
    """Asks to stop after some chunk, or has a signal do so."""

    epoch: int
    signals: bool = False

    def init(self, state, num_chunks):
        pass

    def on_chunk(self, memory, state, infos):
        reached = int(jnp.max(state.progress.epoch)) >= self.epoch
        if reached and self.signals:
            os.kill(os.getpid(), signal.SIGTERM)
        return memory, reached and not self.signals

    def close(self, memory, state):
        pass


def of_cascade(folder):
    """Cut in the first level, at its end, and then in the second."""
    recipe = opx.Recipe(
        *(Sine(), optax.adam(1e-3), opx.Uniform(DOMAINS, COUNTS), opx.Skip()),
        steps=STEPS,
    )
    levels = [opx.Level(recipe, net(0, width), num_chunks=3) for width in (3, 6)]
    run = lambda *callbacks, directory=folder: opx.cascade(
        levels, opx.Widen(), key=jr.key(0), callbacks=callbacks, directory=directory
    )
    for epoch in (1, 3, 5):
        # Asked by a callback at the end of a level, there is nothing of it to stop.
        cut = run(Stop(epoch, signals=epoch == 3))
        assert int(cut.progress.epoch) == epoch
    return run(directory=None), run()


class Distance(eqx.Module):
    """A validation loss that is lowest after a chunk that the key of a member names."""

    def __call__(self, state, infos):
        best = jnp.array([2, 4], jnp.int32)[jr.key_data(state.key)[-1]]
        return jnp.abs(state.progress.epoch - best).astype(float)


def descends_and_then_climbs(count):
    return jnp.where(count < STEPS, 1e-2, -1e-2)


def there_and_back(sampler, optim):
    optim = optim(descends_and_then_climbs)
    return opx.Recipe(Sine(), optim, sampler, opx.Skip(), steps=STEPS)


# One for both that stop early, so that it is compiled once.
ONE, MEMBER = (
    there_and_back(FIXED, optax.sgd),
    there_and_back(SAMPLERS["rad"](), optax.adam),
)


def of_best(members, validated, every, folder):
    """Cut after the third chunk, when the best is behind it, and ended early."""
    recipe = chunk = MEMBER if members > 1 else ONE
    start = recipe.init(net(0), key=jr.key(0))
    if members > 1:
        chunk, keys = opx.Ensemble(recipe), jnp.stack([jr.key(0), jr.key(1)])
        one = lambda key: recipe.init(MLP((1, 3, 1), key=key), key=key)
        start = eqx.filter_vmap(one)(keys)
    start = placed(start)
    validation = opx.Validation(Distance(), patience=3) if validated else None

    def run(state, num_chunks, place):
        store = opx.Checkpoint(
            folder / place, every=every, keep_best=0, keep=1, asynchronous=False
        )
        return opx.fit(
            chunk, state, num_chunks=num_chunks, validation=validation,
            callbacks=[store, Stop(10 if validated else 6)],
        )  # fmt: skip

    whole = run(start, 20, "whole")
    run(start, 3, "cut")
    resumed = run(opx.restore(folder / "cut", zeros(start)), 17, "cut")
    assert whole.step.tolist() == ([2 * STEPS, 4 * STEPS] if members > 1 else 2 * STEPS)
    ends = [sorted(folder.glob(f"{x}/[0-9]*"))[-1] for x in ("whole", "cut")]
    one, other = (json.loads((x / "manifest/metadata").read_text()) for x in ends)
    assert one == other and one["best"]["sha256"] is not None
    return whole, resumed


CASES: dict[str, Callable] = {
    name: lambda folder, name=name: of_recipe(name, folder) for name in RECIPES
} | {
    "cascade": of_cascade,
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
    used = set().union(*(kinds(recipe()) for recipe in RECIPES.values()))
    known = {
        kind
        for kind in descendants(base)
        if kind.__module__.startswith(folder) and not kind.__name__.startswith("Abst")
    }
    assert known and known <= used, f"RECIPES lacks {known - used}"


def descendants(kind):
    direct = kind.__subclasses__()
    return set(direct).union(*map(descendants, direct))


def kinds(choice):
    """The types of what a recipe consists of, at whatever depth."""
    if isinstance(choice, dict | tuple):
        choices = choice.values() if isinstance(choice, dict) else choice
        return set().union(*map(kinds, choices))
    if not isinstance(choice, eqx.Module):
        return set()
    return {type(choice)} | kinds(vars(choice))


def test_every_optimizer_is_resumed():
    used = {"phases", *FIRST_ORDER, *SECOND_ORDER}
    exported = {
        name
        for name, value in vars(opx).items()
        if (getattr(value, "__module__", None) or "").startswith("opifex._optimizer.")
        and not isinstance(value, type)
    }
    assert "ssbroyden" in exported and exported | OPTIMIZERS.keys() <= used
