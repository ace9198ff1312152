"""Training from coarse to fine: whole states, and runs that resume anywhere."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._cascade.levels import cascade, Level
from opifex._cascade.resize import prolongate
from opifex._transfer.widen import Widen
from opifex.neural import MLP

from .helpers import assert_same_bits, Poisson, SAMPLERS


RECIPE = opx.Recipe(
    Poisson(), optax.adam(1e-3), SAMPLERS["uniform"](), opx.Skip(), steps=5
)


def net(width):
    return MLP((1, width, 1), key=jr.key(width))


def levels(*widths, recipe=RECIPE, **kwargs):
    return [Level(recipe, net(width), num_chunks=3, **kwargs) for width in widths]


class Stop(opx.AbstractCallback[None]):
    """Asks to stop after some step; counts how often it is opened and closed."""

    step: int
    calls: list = eqx.field(static=True, default_factory=list)

    def init(self, state, num_chunks):
        self.calls.append(("init", num_chunks))

    def on_chunk(self, memory, state, infos):
        self.calls.append(("chunk", int(state.step)))
        return memory, int(state.step) >= self.step

    def close(self, memory, state):
        self.calls.append(("close", int(state.step)))


@pytest.fixture(scope="module")
def whole():
    """An uninterrupted run, and the losses of all its steps."""
    chunks = []
    collect = opx.Collect(chunks.append)
    state = cascade(levels(3, 6), Widen(), key=jr.key(0), callbacks=[collect])
    return state, opx.join(chunks).loss


def test_it_is_fit_and_prolongate(whole, key):
    state, losses = whole
    by_hand = opx.fit(RECIPE, RECIPE.init(net(3), key=key), num_chunks=3)
    by_hand = prolongate(Widen(), RECIPE.optim, RECIPE.recovery, by_hand, net(6))
    by_hand = opx.fit(RECIPE, by_hand, num_chunks=3)
    for name in ("model", "opt_state", "sampler_state", "step_scale", "step", "key"):
        assert_same_bits(getattr(state, name), getattr(by_hand, name))
    assert state.step == 30 and losses.shape == (30,)
    assert state.model.weights[0].shape == (6, 1)
    assert state.step_scale == 0.5


def test_a_resumed_run_has_the_history_of_the_uninterrupted_one(whole, key, tmp_path):
    rungs, stop = levels(3, 6), Stop(15)
    history = opx.History(tmp_path / "history.csv")
    options = {"key": key, "directory": tmp_path / "run"}
    stopped = cascade(rungs, Widen(), callbacks=[stop, history], **options)
    # Asked to stop at the end of a level, there is nothing left of it to stop.
    assert stop.calls[0] == ("init", 6) and stop.calls[-1][0] == "close"
    assert sum(name != "chunk" for name, _ in stop.calls) == 2
    count = Stop(10**6)
    state = cascade(rungs, Widen(), callbacks=[count, history], **options)
    assert_same_bits(state, whole[0])
    done = int(stopped.progress.epoch)
    assert sum(name == "chunk" for name, _ in count.calls) == 6 - done
    rows = np.genfromtxt(tmp_path / "history.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(rows["step"], np.arange(30))
    np.testing.assert_allclose(rows["loss"], whole[1], rtol=1e-12)
    # A run that is complete stays as it is.
    assert_same_bits(cascade(rungs, Widen(), **options), state)


def test_down_and_up_again(key):
    """The coarse part of a state survives a way down and up."""
    rungs = [Level(RECIPE, net(w), num_chunks=n) for w, n in [(3, 3), (6, 0), (3, 0)]]
    there = cascade(rungs[:1], Widen(), key=key)
    back = cascade(rungs, Widen(), key=key)
    for name in ("model", "opt_state", "step_scale", "step"):
        assert_same_bits(getattr(back, name), getattr(there, name))
    # And is trained on the way.
    rungs = [Level(RECIPE, net(w), num_chunks=2) for w in (3, 6, 3, 6)]
    cycle = cascade(rungs, Widen(), key=key)
    assert cycle.step == 40 and cycle.model.weights[0].shape == (6, 1)
    points = SAMPLERS["fixed"]().batch(None, key, cycle.step)
    residuals = lambda s: Poisson().residuals(s.model, points)
    loss = lambda s: sum(jnp.mean(r**2) for r in residuals(s).values())
    assert loss(cycle) < loss(there)


def test_a_level_ends_when_it_no_longer_improves(key):
    never = opx.Validation(lambda state, infos: jnp.ones(()), patience=2)
    rungs = levels(3, validation=never) + levels(6)
    count = Stop(10**6)
    rungs[0] = Level(RECIPE, net(3), num_chunks=50, validation=never)
    state = cascade(rungs, Widen(), key=key, callbacks=[count])
    assert sum(name == "chunk" for name, _ in count.calls) == 3 + 3
    assert state.progress.result == opx.RESULTS.successful
    assert state.model.weights[0].shape == (6, 1)


def test_new_choices_begin_anew(key):
    """Other points, another weighting and another recovery at the second level."""
    fine = opx.Recipe(
        Poisson(),
        optax.adam(1e-3),
        SAMPLERS["fixed"](),
        opx.Backtrack(clips=True, max_grad_norm=1.0),
        weighting=opx.Static({"boundary": 2.0}),
        steps=5,
    )
    rungs = [Level(RECIPE, net(3), 0), Level(fine, net(6), 1)]
    state = cascade(rungs, Widen(), key=key)
    want = fine.init(net(6), key=key)
    assert_same_bits(state.sampler_state, want.sampler_state)
    assert state.clip_norm == 1.0
    assert state.step == 5


def test_failures_stop_the_run(key):
    wild = opx.Recipe(
        Poisson(), optax.sgd(1e308), SAMPLERS["fixed"](), opx.NoRecovery(), steps=5
    )
    rungs = levels(3, 6, recipe=wild)
    with pytest.raises(opx.TrainingError, match="Backtrack"):
        cascade(rungs, Widen(), key=key)
    state = cascade(rungs, Widen(), key=key, throw=False)
    assert state.progress.result == opx.RESULTS.diverged
    assert state.model.weights[0].shape == (3, 1)


def test_bad_input(key):
    with pytest.raises(ValueError, match="`levels` is empty"):
        cascade([], Widen(), key=key)
    with pytest.raises(ValueError, match="`num_chunks` must be a whole number"):
        Level(RECIPE, net(3), num_chunks=-1)
    deeper = Level(RECIPE, MLP((1, 6, 6, 1), key=key), num_chunks=1)
    with pytest.raises(ValueError, match=r"`levels\[1\]` and `levels\[2\]`.*depth"):
        cascade([*levels(3, 5), deeper], Widen(), key=key)
