import csv
import io
import json
import math
import os
import signal
import sys
import threading
from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from jaxtyping import Array

import opifex as opx
from opifex import _fit
from opifex._best import Best
from opifex._results import RESULT_NAMES

from .helpers import assert_same_bits, bits, mlp, poisson, regression


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
    assert_same_bits(cut, whole)
    # With XLA's own choice of emitters these are the same bits too; see conftest.py.
    for one, other in zip(bits(by_hand), bits(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


STEPS = 10


@cache
def small():
    """A recipe that is compiled once for all tests, and the state it starts from."""
    recipe, model = regression(steps=STEPS)
    recipe = replace(recipe, problem=opx.Supervised(metrics={"mae": opx.mae}))
    return recipe, recipe.init(model, key=jr.key(0))


@cache
def after(num_chunks):
    recipe, state = small()
    return opx.fit(recipe, state, num_chunks=num_chunks)


class Recorder(opx.AbstractCallback):
    """Notes how it is called, and does something at a given epoch."""

    calls: list
    at: dict = eqx.field(default_factory=dict)  # its answer asks to stop

    def _call(self, when):
        self.calls.append(when)
        return bool(self.at.get(when, lambda: False)())

    def init(self, state, num_chunks):
        self._call("init")
        return 0

    def on_chunk(self, memory, state, infos):
        assert infos.loss.shape == (STEPS,)
        return memory + 1, self._call(int(state.progress.epoch))

    def close(self, memory, state):
        # Whatever happened, the state that it is shown can be read.
        assert np.isfinite(bits(state.model)[0]).all()
        self._call("close")


class ByEpoch(eqx.Module):
    """A validation loss that is read from a table."""

    table: Array

    def __call__(self, state, infos):
        return self.table[state.progress.epoch - 1]


def by_epoch(*values, **kwargs):
    table = jnp.array([*values, *[np.inf] * (8 - len(values))])
    return opx.Validation(ByEpoch(table), **kwargs)


def ended(state):
    return RESULT_NAMES[int(state.progress.result._value)]


def fail():
    raise RuntimeError("on purpose")


def test_a_plateau_shortens_the_steps():
    recipe, model = regression(optim=optax.sgd(0.1), steps=1)
    validation = by_epoch(*[5.0, 4, 4, 4, 3, 3, 3, 3], shorten_after=2, factor=0.1)
    states = [recipe.init(model, key=jr.key(0))]
    for _ in range(8):
        states.append(opx.fit(recipe, states[-1], num_chunks=1, validation=validation))
    scales = [float(state.step_scale) for state in states]
    np.testing.assert_allclose(scales, [*[1] * 4, *[0.1] * 3, *[0.01] * 2], rtol=1e-15)
    # The step after a cut is a tenth of what it would have been.
    long = replace(states[4], step_scale=jnp.ones(()))
    weight = lambda state: state.model.layers[0].weight
    step = lambda state: weight(recipe(state)[0]) - weight(state)
    np.testing.assert_allclose(step(states[4]), 0.1 * step(long), rtol=1e-9)


class Counting(opx.AbstractProblem):
    """Python runs only while JAX traces."""

    traces: list = eqx.field(static=True)

    def terms(self, model, batch, key):
        self.traces.append("traced")
        return opx.Supervised().terms(model, batch, key)


def test_a_second_fit_compiles_nothing(key):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: "backend_compile" in event and compiled.append(event)
    )
    traces, optim, x = [], optax.adam(1e-3), jnp.linspace(-1, 1, 32)[:, None]

    def run(seed, state=None):
        y = jr.normal(jr.key(seed), x.shape)
        sampler = opx.Minibatch(x, y, 8)
        recipe = opx.Recipe(Counting(traces), optim, sampler, steps=5)
        if state is None:
            state = recipe.init(mlp(jr.key(seed)), key=jr.key(seed))
        held_out = opx.HeldOut(recipe.problem, opx.Pairs(x, y))
        validation = opx.Validation(held_out, patience=5)
        before = len(traces), len(compiled)
        state = opx.fit(recipe, state, num_chunks=3, validation=validation)
        return state, len(traces) - before[0], len(compiled) - before[1]

    state, traced, compiles = run(0)
    assert min(traced, compiles) > 0
    # The same again; other models, data and keys; and a state that `fit` returned.
    assert [run(0)[1:], run(1)[1:], run(2, state)[1:]] == [(0, 0)] * 3


def test_what_was_handed_in_stays_valid():
    recipe, model = regression(steps=STEPS)
    key = jr.key(0)
    state = recipe.init(model, key=key)
    before = [x.copy() for x in bits((model, state, key))]
    for _ in range(2):
        opx.fit(recipe, state, num_chunks=2, validation=opx.Validation())
    np.testing.assert_equal(bits((model, state, key)), before)


def test_no_chunk_changes_nothing():
    recipe, state = small()
    assert_same_bits(opx.fit(recipe, state, num_chunks=0), state)


@pytest.fixture
def signals():
    """What Python does with signals unless told otherwise; a background job may not."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = (signal.default_int_handler, signal.SIG_DFL)
    before = [signal.signal(*both) for both in zip(numbers, handlers, strict=True)]
    yield
    # Those that were there before `fit` are there after it.
    assert tuple(map(signal.getsignal, numbers)) == handlers
    for both in zip(numbers, before, strict=True):
        signal.signal(*both)


def kill(number, times=1):
    def send():
        for _ in range(times):
            os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize(
    ("ending", "chunks", "options"),
    [
        ("interrupted", 3, {"at": {3: kill(signal.SIGINT)}}),
        ("interrupted", 3, {"at": {3: kill(signal.SIGTERM)}}),
        ("stopped", 3, {"at": {3: lambda: True}}),
        # Spent before the first chunk is over; it is finished nevertheless.
        ("time_budget_spent", 1, {"time_budget": 1e-9}),
        ("plateaued", 4, {"patience": 2}),
        ("successful", 5, {}),
    ],
)
@pytest.mark.usefixtures("signals")
def test_every_ending(ending, chunks, options):
    recipe, state = small()
    calls = []
    state = opx.fit(
        recipe,
        state,
        num_chunks=5,
        callbacks=[Recorder(calls, options.get("at", {}))],
        validation=by_epoch(3, 1, 2, 2, 2, patience=options.get("patience", math.inf)),
        time_budget=options.get("time_budget", math.inf),
    )
    assert calls == ["init", *range(1, chunks + 1), "close"]
    assert ended(state) == ending
    # The best state, if the run ended early.
    back = {"successful": 5, "time_budget_spent": 1}.get(ending, 2)
    assert state.progress.epoch == back
    assert_same_bits(state.model, after(back).model)


@pytest.mark.usefixtures("signals")
def test_the_second_signal_is_not_caught():
    recipe, state = small()
    calls = []
    recorder = Recorder(calls, {2: kill(signal.SIGINT, times=2)})
    with pytest.raises(KeyboardInterrupt):
        opx.fit(recipe, state, num_chunks=5, callbacks=[recorder])
    assert calls == ["init", 1, 2, "close"]


def test_outside_the_main_thread():
    recipe, state = small()
    states = []
    run = lambda: states.append(opx.fit(recipe, state, num_chunks=2))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert_same_bits(states[0], after(2))


def test_an_error_in_a_callback_does_not_cost_the_run(caplog):
    recipe, state = small()
    calls = [[], [], []]
    at = [{2: fail}, {}, {"close": fail}]
    recorders = [Recorder(*both) for both in zip(calls, at, strict=True)]
    state = opx.fit(recipe, state, num_chunks=4, callbacks=recorders)
    assert_same_bits(state, after(4))
    assert calls[0] == ["init", 1, 2, "close"]
    assert calls[1] == calls[2] == ["init", 1, 2, 3, 4, "close"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "Recorder failed; going on without it.",
        "Recorder could not be closed.",
    ]
    assert all("on purpose" in record.exc_text for record in caplog.records)


def test_an_error_in_opening_a_callback_is_raised_at_once():
    recipe, state = small()
    calls = [[], [], []]
    at = [{}, {"init": fail}, {}]
    recorders = [Recorder(*both) for both in zip(calls, at, strict=True)]
    with pytest.raises(RuntimeError, match="on purpose"):
        opx.fit(recipe, state, num_chunks=4, callbacks=recorders)
    assert calls == [["init", "close"], ["init"], []]


def _error_if(state):
    step = eqx.error_if(state.step, state.progress.epoch == 3, "on purpose")
    return replace(state, step=step)


def _callback(state):
    def look(step):
        return fail() if step == 3 * STEPS else step

    step = jax.pure_callback(look, state.step, state.step)
    return replace(state, step=step)


def _debug(state):
    jax.debug.callback(
        lambda epoch: fail() if epoch == 3 else None, state.progress.epoch
    )
    return state


@pytest.mark.parametrize("break_", [_error_if, _callback, _debug])
def test_a_chunk_that_raises(break_):
    recipe, start = small()

    def chunk(state):
        state, infos = recipe(state)
        return break_(state), infos

    calls = []
    with pytest.raises(
        opx.TrainingError, match="A chunk failed with .*Error"
    ) as caught:
        opx.fit(chunk, start, num_chunks=5, callbacks=[Recorder(calls)])
    assert "on purpose" in str(caught.value.__cause__)
    assert calls == ["init", 1, 2, "close"]
    state = caught.value.state
    assert_same_bits(state.model, after(2).model)
    assert_same_bits(opx.fit(recipe, state, num_chunks=2).model, after(4).model)


@pytest.fixture
def donation(monkeypatch):
    """What `fit` does on a GPU, or where XLA does not know the order it asks for."""
    cached = (_fit._options, _fit._compiled)
    monkeypatch.setattr(_fit, "_is_known", lambda options: False)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


class Keeper(opx.AbstractCallback):
    """Keeps every state, though it should not, and stops after four."""

    states: list

    def init(self, state, num_chunks):
        return None

    def on_chunk(self, memory, state, infos):
        self.states.append(state)
        return memory, len(self.states) == 4

    def close(self, memory, state):
        assert np.isfinite(bits(state.model)[0]).all()


def scored(rows):
    """A state a row of `(loss, number)`, with that number in an array of its model."""
    _, state = small()
    where = lambda s: (s.progress.best_val_loss, s.model.layers[0].weight)
    fill = lambda x, number: jnp.full_like(x, number)
    with_ = lambda row: eqx.tree_at(where, state, [*map(fill, where(state), row)])
    return eqx.filter_vmap(with_)(jnp.array(rows))


@pytest.mark.parametrize("other", [None, 4.0])
def test_what_is_not_finite_is_not_the_best(other):
    """Nor does its loss bound what may be: alone, and beside a sound member."""
    rows = [(np.inf, 0.0), (3.0, 1.0), (1.0, np.nan), (2.0, 2.0), (2.5, 3.0)]
    first = lambda x: x[0] if eqx.is_array(x) else x
    chunks, best, validation = [], None, opx.Validation()
    opx.fit(*small(), num_chunks=1, callbacks=[opx.Collect(chunks.append)])
    for row in rows:
        if other is None:
            state = jtu.tree_map(first, scored([row]))
        else:
            sound = (row[0], other if np.isnan(row[1]) else row[1])
            state = scored([row, sound])
        if best is None:
            best = Best.before(state, validation)
        best = best.or_better(state, chunks[0], validation, lambda state: state)
    weight = best.state.model.layers[0].weight[..., 0, 0]
    np.testing.assert_array_equal(best.loss, 2 if other is None else [2, 1])
    np.testing.assert_array_equal(weight, 2 if other is None else [2, other])


@pytest.mark.usefixtures("donation")
@pytest.mark.parametrize(("table", "best"), [([3, 1, 2, 2], 2), ([9, 1, 1, 0], 4)])
def test_the_best_state_outlives_what_is_given_away(table, best):
    recipe, start = small()
    states, before = [], bits(start)
    # A function of its own, so that it is compiled for this.
    end = opx.fit(
        lambda state: recipe(state),
        start,
        num_chunks=5,
        callbacks=[Keeper(states)],
        validation=by_epoch(*table),
    )
    deleted = [state.model.layers[0].weight.is_deleted() for state in states]
    assert deleted == [True, True, True, False]
    np.testing.assert_equal(bits(start), before)
    for one, other in zip(bits(end.model), bits(after(best).model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def judged(table, patience, min_delta, every):
    """After how many chunks early stopping ends, and the best of them, in Python."""
    best, best_epoch, count = math.inf, 0, 0
    for epoch, loss in enumerate(table, start=1):
        if epoch % every:
            continue
        better = loss < best - min_delta
        best, best_epoch = (loss, epoch) if better else (best, best_epoch)
        count = 0 if better else count + 1
        if count >= patience:
            return epoch, best_epoch, best, count
    return len(table), len(table), best, count


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ([6, 5, 4, 3, 2, 1], {"patience": 1}),
        ([3, 1, 2, 2, 0, 0], {"patience": 2}),
        ([3, 1, 2, 2, 0, 0], {"patience": 3}),
        ([3, 3, 3, 3, 3, 3], {"patience": 4}),
        ([3, math.nan, math.nan, 2, math.nan, math.nan], {"patience": 3}),
        ([math.nan] * 6, {"patience": 3}),
        ([5, 4.5, 4.1, 3.9, 3.8, 1], {"patience": 2, "min_delta": 1.0}),
        ([5, 4.5, 4.1, 3.9, 3.8, 1], {"patience": 3, "min_delta": 1.0}),
        ([5, 4, 3, 4, 1, 4], {"patience": 1, "every": 2}),
        ([5, 4, 3, 3, 1, 4], {"patience": 2, "every": 3}),
    ],
)
def test_early_stopping(table, rule):
    recipe, state = small()
    rule = {"min_delta": 0.0, "every": 1} | rule
    chunks, best_epoch, best, count = judged(table, **rule)
    validation = by_epoch(*table, **rule)
    calls = []
    options = {"validation": validation, "callbacks": [Recorder(calls)]}
    whole = opx.fit(recipe, state, num_chunks=6, **options)
    assert calls == ["init", *range(1, chunks + 1), "close"]
    assert whole.progress.best_val_loss == best
    assert_same_bits(whole.model, after(best_epoch).model)
    assert ended(whole) == ("plateaued" if count >= rule["patience"] else "successful")
    # The same end, wherever the run is cut and resumed.
    for cut in range(1, chunks):
        calls.clear()
        first = opx.fit(recipe, state, num_chunks=cut, validation=validation)
        assert ended(first) == "successful"
        second = opx.fit(recipe, first, num_chunks=6 - cut, **options)
        assert calls == ["init", *range(cut + 1, chunks + 1), "close"]
        assert second.progress.best_val_loss == best
        assert ended(second) == ended(whole)
        # Who resumes where it was best already is handed back the start.
        early = ended(whole) == "plateaued" and best_epoch <= cut
        assert_same_bits(second.model, after(cut if early else best_epoch).model)


def test_held_out_loss():
    recipe, state = small()
    inputs = jnp.linspace(-0.9, 0.9, 7)[:, None]
    # What the model says after three chunks, nearly: it is best then.
    noise = 1e-6 * jr.normal(jr.key(3), inputs.shape)
    targets = jax.vmap(after(3).model)(inputs) + noise
    held_out = opx.HeldOut(opx.Supervised(), opx.Pairs(inputs, targets))
    validation = opx.Validation(held_out, patience=2)
    state = opx.fit(recipe, state, num_chunks=20, validation=validation)
    assert ended(state) == "plateaued"
    assert_same_bits(state.model, after(3).model)
    found = np.square(jax.vmap(state.model)(inputs) - targets).mean()
    np.testing.assert_allclose(state.progress.best_val_loss, found, rtol=1e-9)


def test_the_training_loss_judges_unless_told_otherwise():
    recipe, state = small()
    chunks = []
    options = {"num_chunks": 4, "callbacks": [opx.Collect(chunks.append)]}
    judged = opx.fit(recipe, state, validation=opx.Validation(), **options)
    losses = opx.join(chunks).loss
    means = losses.reshape(4, STEPS).mean(axis=1)
    np.testing.assert_allclose(judged.progress.best_val_loss, means.min(), rtol=1e-12)
    np.testing.assert_array_equal(judged.progress.best_loss, losses.min())


def test_the_training_loss_leaves_out_what_was_not_kept():
    state = replace(small()[1], step=jnp.array(8, jnp.int32))
    one = jnp.ones(())

    @jax.vmap
    def info(loss):
        result = opx.RESULTS.where(
            loss < 9, opx.RESULTS.successful, opx.RESULTS.nonfinite_loss
        )
        return opx.StepInfo(loss, {}, {}, {}, one[None], one, one, result)

    infos = info(jnp.array([1.0, 2.0, jnp.nan, 6.0, jnp.inf]))
    assert opx.training_loss(state, infos) == 3
    for step, is_nan in ((2, False), (3, True), (7, True)):  # of the last way back
        places = jnp.array([2, 0, -1, step], jnp.int32)
        where = lambda s: s.recovery_state.record.faults.places
        went_back = eqx.tree_at(where, state, places)
        assert jnp.isnan(opx.training_loss(went_back, infos)) == is_nan
    assert opx.training_loss(small()[1], infos) == 3


@pytest.mark.parametrize("throw", [True, False])
def test_a_run_that_cannot_go_on(throw):
    recipe, model = regression(recovery=opx.NoRecovery(), steps=STEPS)
    model = eqx.tree_at(lambda m: m.layers[0].bias, model, jnp.full(8, jnp.nan))
    state = recipe.init(model, key=jr.key(0))
    try:
        state = opx.fit(recipe, state, num_chunks=3, throw=throw)
        assert not throw
    except opx.TrainingError as error:
        assert throw
        assert str(error) == opx.RESULTS[opx.RESULTS.diverged]
        state = error.state
    assert ended(state) == "diverged"
    assert state.progress.epoch == 0


def rows_of(infos, first=0):
    """What a history should hold, from what `Collect` was handed."""
    members = infos.loss[None] if infos.loss.ndim == 1 else infos.loss
    for step in range(members.shape[1]):
        for member in range(members.shape[0]):
            at = (step,) if infos.loss.ndim == 1 else (member, step)
            row = {"step": first + step, "loss": infos.loss[at]}
            row |= {"member": member} if infos.loss.ndim == 2 else {}
            row |= {f"term/{name}": v[at] for name, v in infos.terms.items()}
            row |= {f"weight/{name}": v[at] for name, v in infos.weights.items()}
            row |= {f"metric/{name}": v[at] for name, v in infos.metrics.items()}
            row |= {"grad_norm": infos.grad_norm[at], "step_scale": 1.0}
            yield row | {"result": "successful"}


def read(path):
    with path.open() as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        plain = lambda name, x: x if name == "result" else float(x)
        return [
            {k: plain(k, x) for k, x in row.items()} for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_history(tmp_path, suffix):
    recipe, state = small()
    path, chunks = tmp_path / "runs" / f"history{suffix}", []
    callbacks = [opx.History(path), opx.Collect(chunks.append)]
    opx.fit(recipe, state, num_chunks=4, callbacks=callbacks)
    rows = list(rows_of(opx.join(chunks)))
    assert [set(row) for row in read(path)[:1]] == [set(rows[0])]
    assert "metric/mae" in rows[0]
    assert read(path) == rows
    # A run that was killed while it wrote, resumed from two chunks earlier.
    with path.open("a") as file:
        file.write('{"step": 4' if suffix == ".jsonl" else "4")
    opx.fit(recipe, after(2), num_chunks=1, callbacks=[opx.History(path)])
    assert read(path) == rows[: 3 * STEPS]
    opx.fit(recipe, after(3), num_chunks=1, callbacks=[opx.History(path)])
    assert read(path) == rows
    # A run from the start begins the file anew.
    opx.fit(recipe, state, num_chunks=1, callbacks=[opx.History(path)])
    assert read(path) == rows[:STEPS]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_history_of_an_ensemble(tmp_path, suffix):
    recipe, _ = small()
    init = lambda key: recipe.init(mlp(key), key=key)
    states = eqx.filter_vmap(init)(jr.split(jr.key(0), 2))
    path, chunks = tmp_path / f"history{suffix}", []
    callbacks = [opx.History(path), opx.Collect(chunks.append)]
    opx.fit(opx.Ensemble(recipe), states, num_chunks=2, callbacks=callbacks)
    assert read(path) == list(rows_of(opx.join(chunks)))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar(capsys, monkeypatch):
    recipe, state = small()
    run = lambda: opx.fit(recipe, state, num_chunks=3, callbacks=[opx.ProgressBar("a")])
    run()
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run()
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("a: 100%")
    assert f"{3 * STEPS}/{3 * STEPS}" in last
    assert "loss " in last
