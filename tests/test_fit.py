import equinox as eqx
import jax.random as jr
import pytest

import opifex as opx

from .helpers import assert_same_bits, poisson, regression, SAMPLERS


@pytest.mark.parametrize("make", [regression, poisson])
def test_one_loop_however_written(make, key):
    recipe, model = make()
    state = recipe.init(model, key=key)
    optim, sampler, recovery = recipe.optim, recipe.sampler, recipe.recovery

    def step(state):
        batch = sampler.batch(state.sampler_state, state.key_for("batch"), state.step)
        proposed, info = opx.train_step(recipe.problem, optim, state, batch)
        return opx.recover(recovery, state, proposed, info)

    @eqx.filter_jit
    def chunk(start):
        state, infos = opx.filter_scan(step, start, length=10)
        state = opx.anchor(recovery, start, state)
        return opx.resample(sampler, recipe.problem, state), infos

    by_hand = opx.init(optim, sampler, recovery, model, key=key)
    for _ in range(20):
        by_hand, _ = chunk(by_hand)
    whole = opx.fit(recipe, state, num_chunks=20)
    cut = opx.fit(recipe, opx.fit(recipe, state, num_chunks=7), num_chunks=13)
    assert_same_bits(by_hand, whole)
    assert_same_bits(cut, whole)
