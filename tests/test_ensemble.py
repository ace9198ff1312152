import math
import os
import pathlib
import subprocess
import sys
from functools import cache

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import jaxtyping
import numpy as np
import optax
import pytest
from jaxtyping import Array

import opifex as opx
from opifex._results import RESULT_NAMES

from .helpers import assert_same_bits, bits, mlp, regression, SAMPLERS, Sine


SIZE = 4


def member(states, i):
    return jtu.tree_map(lambda x: x[i] if eqx.is_array(x) else x, states)


def assert_close(one, other, rtol):
    for a, b in zip(bits(one), bits(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@cache
def chunks_of_their_own():
    """Members with points, moments and a ground of their own; two chunks of each."""
    recipe = opx.Recipe(Sine(), optax.adam(1e-3), SAMPLERS["rad"](), steps=5)
    init = lambda key: recipe.init(mlp(key), key=key)
    states = eqx.filter_vmap(init)(jr.split(jr.key(0), SIZE))

    solo = eqx.filter_jit(recipe)
    return recipe, states, [twice(solo, member(states, i)) for i in range(SIZE)]


def twice(chunk, state):
    state, first = chunk(state)
    return chunk(state), first


@pytest.mark.parametrize(
    ("how", "batch_size"),
    # One after the other is what the fit of an ensemble below is compared by.
    [("map", 3), ("vmap", 1)],
)
def test_members_are_runs_of_their_own(how, batch_size):
    recipe, states, alone = chunks_of_their_own()
    ensemble = lambda s: opx.ensemble(recipe, s, how=how, batch_size=batch_size)
    results = twice(eqx.filter_jit(ensemble), states)
    for i in range(SIZE):
        assert_close(member(results, i), alone[i], rtol=1e-11)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_what_is_not_an_array_passes_through(how):
    members = {"x": jnp.arange(3.0), "name": "a", "fn": jnp.sin}
    run = lambda m: (m["fn"](m["x"]), m | {"name": m["name"] + "b"})
    sines, results = opx.ensemble(run, members, how=how)
    np.testing.assert_allclose(sines, np.sin(np.arange(3.0)), rtol=1e-15)
    assert results["name"] == "ab"
    assert results["fn"] is jnp.sin
    keys = jr.split(jr.key(1), 5)
    found = opx.ensemble(lambda key: jr.normal(key, (2,)), keys, how=how)
    np.testing.assert_array_equal(found, [jr.normal(key, (2,)) for key in keys])


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (jnp.ones(3), {"how": "vamp"}, r"'vamp' in `how`.*mean 'vmap'.*'auto', 'map'"),
        ((jnp.ones(3), jnp.ones((4, 2))), {}, r"`members` must share.*\(3,\), \(4,\)"),
        ((jnp.ones(3), jnp.ones(())), {}, r"`members` must share one leading axis"),
        ("none", {}, r"`members` must share one leading axis"),
        (jnp.ones(3), {"batch_size": 0}, r"`batch_size` must be a whole number.*got 0"),
        (jnp.ones(3), {"devices": ["a", "b"]}, r"`devices` must divide.*2 .*3 members"),
    ],
)
def test_bad_arguments(members, options, message, monkeypatch):
    # Our own checks, for those who run without a type checker.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        opx.ensemble(lambda x: x, members, **options)


SHARDED = """
import equinox as eqx, jax, jax.random as jr
jax.config.update("jax_enable_x64", True)
import opifex as opx
from tests.helpers import bits, mlp, regression
import numpy as np
recipe, _ = regression(steps=5)
states = eqx.filter_vmap(lambda k: recipe.init(mlp(k), key=k))(jr.split(jr.key(0), 4))
devices = tuple(jax.devices())
assert len(devices) == 2
for how in ("map", "vmap"):
    found = opx.ensemble(jr.normal, jr.split(jr.key(1), 6), how=how, devices=devices)
    assert found.sharding.device_set == set(devices)
    wanted = [jr.normal(key) for key in jr.split(jr.key(1), 6)]
    np.testing.assert_array_equal(found, wanted)
here = opx.fit(opx.Ensemble(recipe), states, num_chunks=2)
chunk = opx.Ensemble(recipe, devices=devices)
there = opx.fit(chunk, states, num_chunks=2, validation=opx.Validation())
weight = there.model.layers[0].weight
assert weight.sharding.device_set == set(devices)
for a, b in zip(bits(here.model), bits(there.model), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
"""


def test_sharding_over_devices():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 "
        "--xla_backend_optimization_level=0",
    }
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED],
        cwd=pathlib.Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@cache
def members_of_regression():
    recovery = opx.Backtrack(max_attempts=2, max_reinits=0)
    recipe, _ = regression(recovery=recovery)
    init = lambda seed: recipe.init(mlp(jr.key(seed)), key=jr.key(seed))
    return recipe, eqx.filter_vmap(init)(jnp.arange(SIZE))


@cache
def alone(seed, num_chunks):
    recipe, states = members_of_regression()
    return opx.fit(recipe, member(states, seed), num_chunks=num_chunks)


class ByMember(eqx.Module):
    """A validation loss from a table; the number of a member is the seed of its key."""

    table: Array

    def __call__(self, state, infos):
        return self.table[jr.key_data(state.key)[1], state.progress.epoch - 1]


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_fit_of_an_ensemble(how):
    recipe, states = members_of_regression()
    chunk = opx.Ensemble(recipe, how=how)
    infos = []
    callbacks = [opx.Collect(infos.append)]
    whole = opx.fit(chunk, states, num_chunks=3, callbacks=callbacks)
    assert opx.join(infos).loss.shape == (SIZE, 30)
    assert_same_bits(opx.fit(chunk, states, num_chunks=0), states)
    for i in range(SIZE):
        assert_close(member(whole, i), alone(i, 3), rtol=1e-12)
    # The run ends when no member is worth going on with, each at its own best.
    table = np.full((SIZE, 6), np.nan)
    table[0] = 3, 1, 2, 2, 2, 2
    table[1] = 5, 4, 3, 2, 2, 2
    table[2] = 5, 4, 5, 3, 9, 9
    best = [2, 4, 4, 0]  # the last is never better than it began
    validation = opx.Validation(ByMember(jnp.array(table)), patience=2)
    state = opx.fit(chunk, states, num_chunks=9, validation=validation)
    np.testing.assert_array_equal(state.progress.epoch, best)
    for i in range(SIZE):
        assert RESULT_NAMES[int(state.progress.result._value[i])] == "plateaued"
        assert_close(member(state.model, i), alone(i, best[i]).model, rtol=1e-12)
    losses = np.append(np.nanmin(table[:3], axis=1), np.inf)
    np.testing.assert_array_equal(state.progress.best_val_loss, losses)


def _poisoned(lost):
    """Members whose parameters are NaN, with the ground that recovery returns to."""
    recipe, states = members_of_regression()
    factor = jnp.ones(SIZE).at[jnp.array(lost)].set(jnp.nan)

    def poison(x):
        real = eqx.is_inexact_array(x) and x.ndim > 1
        return x * factor.reshape(-1, *[1] * (x.ndim - 1)) if real else x

    arrays = (states.model, states.recovery_state.ground)
    where = lambda s: (s.model, s.recovery_state.ground)
    return recipe, eqx.tree_at(where, states, jtu.tree_map(poison, arrays))


@pytest.mark.parametrize("patience", [math.inf, 1])
def test_one_member_fails(patience, caplog):
    recipe, states = _poisoned([1])
    chunk, losses = opx.Ensemble(recipe), jnp.zeros((SIZE, 9))
    validation = opx.Validation(ByMember(losses), patience=patience)
    state = opx.fit(chunk, states, num_chunks=5, validation=validation)
    ended = "successful" if patience == math.inf else "plateaued"
    names = [RESULT_NAMES[i] for i in state.progress.result._value]
    assert names == [ended, "attempts_exhausted", ended, ended]
    epoch = 5 if patience == math.inf else 1
    for i in (0, 2, 3):
        assert_close(member(state.model, i), alone(i, epoch).model, rtol=1e-12)
    assert [record.getMessage() for record in caplog.records] == [
        "Members [1] failed; the others are sound."
    ]


def test_all_members_fail():
    recipe, states = _poisoned(list(range(SIZE)))
    with pytest.raises(
        opx.TrainingError, match=r"'term': 'data'.* did not recover"
    ) as e:
        opx.fit(opx.Ensemble(recipe), states, num_chunks=20)
    assert str(e.value).endswith(opx.RESULTS[opx.RESULTS.attempts_exhausted])
    assert jnp.all(opx.is_fatal(e.value.state.progress.result))
