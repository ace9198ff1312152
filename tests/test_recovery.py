import itertools
import math
from collections import Counter
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
from opifex._recovery.base import CAUSES
from opifex._results import RESULT_NAMES

from .helpers import assert_same_bits, bits, mlp, OPTIMIZERS, RECOVERIES, regression


# Faults are put into the problem, not into the optimizer: it is the gradient of the
# problem that recovery judges. The schedule is an array, so that a run without a fault
# is the same program; another program would differ by rounding.


@jax.custom_vjp
def scale_gradient(x, factor):
    del factor
    return x


scale_gradient.defvjp(
    lambda x, factor: (x, factor),
    lambda factor, g: (factor * g, jnp.zeros_like(factor)),
)


class Numbered(opx.AbstractSampler):
    """Adds to the batch the number of its step."""

    inner: opx.AbstractSampler

    def init(self, key):
        return self.inner.init(key)

    def batch(self, state, key, step):
        return self.inner.batch(state, key, step), step

    def resample(self, state, problem, model, key):
        return self.inner.resample(state, problem, model, key)


class Faulty(opx.AbstractProblem):
    """A problem whose value and gradient go wrong at given steps."""

    inner: opx.AbstractProblem
    added: Array  # to the value of every term, by step
    factor: Array  # of the gradient of each array, by step

    def terms(self, model, batch, key):
        batch, step = batch
        params, rest = eqx.partition(model, eqx.is_inexact_array)
        leaves, treedef = jtu.tree_flatten(params)
        scaled = map(scale_gradient, leaves, self.factor[step])
        model = eqx.combine(jtu.tree_unflatten(treedef, scaled), rest)
        terms, aux = self.inner.terms(model, batch, key)
        return {name: v + self.added[step] for name, v in terms.items()}, aux


STEPS, CHUNKS = 50, 12
END = STEPS * CHUNKS
X = jnp.linspace(-1, 1, 64)[:, None]
Y = jnp.sin(3 * X) + 0.3 * jr.normal(jr.key(3), X.shape)  # noise: a loss to end at
SAMPLER = Numbered(opx.Minibatch(X, Y, 32))
# The learning rate is part of the state: one program for all.
ADAM = optax.inject_hyperparams(optax.adam)(learning_rate=1e-2)
NO_FAULT = {"added": 0.0, "factor": 1.0}
FAULTS = {
    "nan_gradient": {"factor": np.nan},
    "inf_gradient": {"factor": np.inf},
    "spike": {"factor": 1e6},
    "nan_loss": {"added": np.nan},
    "exploded": {"added": 1e8},
}


def faulty(recovery, steps=(), *, leaves=slice(None), added=0.0, factor=1.0):
    """A recipe that goes wrong at `steps`."""
    adds, factors = np.zeros(END), np.ones((END, 6))
    adds[list(steps)] = added
    for step in steps:
        factors[step, leaves] = factor
    problem = Faulty(opx.Supervised(), jnp.array(adds), jnp.array(factors))
    return opx.Recipe(problem, ADAM, SAMPLER, RECOVERIES[recovery](), steps=STEPS)


def start(recipe):
    return recipe.init(mlp(jr.key(1)), key=jr.key(0))


def run(recipe, *, num_chunks=CHUNKS, **kwargs):
    return opx.fit(recipe, start(recipe), num_chunks=num_chunks, **kwargs)


def final_loss(state):
    return float(jnp.mean((jax.vmap(state.model)(X) - Y) ** 2))


def is_finite(model):
    return all(
        np.isfinite(x).all() for x in bits(eqx.filter(model, eqx.is_inexact_array))
    )


def ended(state):
    return RESULT_NAMES[int(state.progress.result._value)]


@cache
def clean(recovery):
    return run(faulty(recovery))


@pytest.mark.parametrize(
    "steps", [(320,), (320, 321), (END - 1,)], ids=["one", "two", "last"]
)
@pytest.mark.parametrize(
    ("recovery", "fault"),
    [
        *itertools.product(["backtrack", "backtrack_clips"], FAULTS),
        # It looks for NaN and infinities alone.
        *itertools.product(["skip"], ["nan_gradient", "inf_gradient", "nan_loss"]),
    ],
)
def test_a_fault_is_survived(recovery, fault, steps):
    state = run(faulty(recovery, steps, **FAULTS[fault]))
    assert ended(state) == "successful"
    assert is_finite(state.model)
    unhealed = recovery == "backtrack_clips" and fault == "spike" and END - 1 in steps
    # A clipped step is taken: only the steps after it can make up for it.
    assert final_loss(state) < (2 if unhealed else 1.05) * final_loss(clean(recovery))
    counted = Counter(opx.fault_report(state))
    cause = {
        "nan_gradient": "nonfinite_gradient",
        "inf_gradient": "nonfinite_gradient",
        "nan_loss": "nonfinite_loss",
        "spike": "clipped" if recovery == "backtrack_clips" else "spiked",
        "exploded": "exploded",
    }[fault]
    assert counted[cause] == len(steps)


class Last(opx.AbstractCallback):
    """Keeps the state that ends the run, which `fit` may not hand back."""

    states: list

    def init(self, state, num_chunks):
        del state, num_chunks

    def on_chunk(self, memory, state, infos):
        # Its buffers are given to the next chunk.
        self.states[:] = [
            jtu.tree_map(lambda x: x.copy() if eqx.is_array(x) else x, state)
        ]
        return memory, False

    def close(self, memory, state):
        del memory, state


def run_until_lost(recipe):
    """The error of a run that cannot go on, and the state in which it was."""
    states = []
    with pytest.raises(opx.TrainingError) as caught:
        run(recipe, callbacks=[Last(states)])
    return caught.value, states[0]


@pytest.mark.parametrize(
    ("recovery", "fault", "period"),
    [
        ("skip", "nan_gradient", 1),
        ("skip", "nan_loss", 1),
        *itertools.product(
            ["backtrack"], ["nan_gradient", "nan_loss", "exploded"], [1, 3]
        ),
    ],
)
def test_a_fault_that_stays(recovery, fault, period):
    # With a period of 3 every third step is kept, which must not renew the attempts.
    steps = [step for step in range(120, END) if period == 1 or step % period]
    error, last = run_until_lost(faulty(recovery, steps, **FAULTS[fault]))
    assert ended(last) == ended(error.state) == "attempts_exhausted"
    assert is_finite(last.model)
    assert is_finite(error.state.model)
    assert str(error).endswith(opx.RESULTS[opx.RESULTS.attempts_exhausted])
    assert f"'step': {steps[0]}" in str(error)
    if recovery == "backtrack":
        # Chunk 2 was sound: it vouches for its start, and its end is the best there is.
        ground = run(faulty(recovery), num_chunks=1)
        assert_same_bits(last.recovery_state.ground[0], ground.model)
        if period == 1:
            assert_same_bits(last.model, ground.model)
        best = run(faulty(recovery), num_chunks=2)
        assert_same_bits(error.state.model, best.model)


def test_no_recovery():
    error, last = run_until_lost(faulty("none", [70], **FAULTS["nan_gradient"]))
    assert ended(error.state) == ended(last) == "diverged"
    # The losses of the second chunk were the lower ones, until it broke.
    assert not is_finite(last.model)
    assert_same_bits(error.state.model, run(faulty("none"), num_chunks=1).model)
    assert str(error).endswith("Use `Backtrack()`, or lower the learning rate.")


@pytest.mark.parametrize(("steps", "epoch"), [((), 1), ((20,), 1), ((20, 21), 0)])
def test_the_best_state_of_a_run_with_faults(steps, epoch):
    # A step that was not taken does not count against a chunk; a way back does, as
    # what was measured before it is not of the model at the end.
    recipe = faulty("backtrack", steps, **FAULTS["nan_loss"])
    state = run(recipe, time_budget=1e-9)
    assert ended(state) == "time_budget_spent"
    assert state.progress.epoch == epoch


@pytest.mark.parametrize("times", [30, 1e3, 1e6])
@pytest.mark.parametrize("recovery", ["skip", "backtrack", "backtrack_clips"])
def test_learning_rate_far_too_high(recovery, times):
    sgd = optax.inject_hyperparams(optax.sgd)
    recipe = replace(faulty(recovery), optim=_sgd())
    hot = start(replace(recipe, optim=sgd(learning_rate=0.1 * times)))
    state = opx.fit(recipe, hot, num_chunks=CHUNKS, throw=False)
    assert ended(state) in ("successful", "attempts_exhausted")
    assert is_finite(state.model)
    if recovery == "backtrack":
        assert ended(state) == "successful"
        assert final_loss(state) < 0.5 * final_loss(hot)


def test_growing_weights_are_no_explosion(key):
    grow = opx.Scheduled({"data": lambda step: 10.0 ** step.astype(float)})
    recipe, model = regression(weighting=grow, steps=20)
    _, infos = recipe(recipe.init(model, key=key))
    assert infos.loss[-1] > 1e10 * infos.loss[0]
    assert jnp.all(infos.result == opx.RESULTS.successful)


@cache
def _sgd():
    return optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)


# The rules themselves, fed by hand: a model is a number, and so is its momentum.

OPTIM = optax.trace(0.9)
OK, NAN, INF, BIG = (1.0, 1.0), (np.nan, 1.0), (1.0, np.inf), (1e7, 1.0)
SPIKE = (1.0, 1e6)


def numbered(number):
    return {"b": jnp.full(3, number), "w": jnp.full(2, number)}


def begin(recovery):
    state = opx.init(OPTIM, SAMPLER, recovery, numbered(0.0), key=jr.key(0))
    return replace(state, opt_state=optax.TraceState(numbered(0.0)))


def verdict(loss, norm):
    bad = opx.RESULTS.where(
        jnp.isfinite(loss), opx.RESULTS.nonfinite_gradient, opx.RESULTS.nonfinite_loss
    )
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    return opx.RESULTS.where(good, opx.RESULTS.successful, bad)


@eqx.filter_jit
def feed(recovery, state, losses, norms, numbers):
    """A chunk in which step `i` proposes the model `numbers[i]`."""

    def step(state, event):
        loss, norm, number = event
        proposed = replace(
            state,
            model=numbered(number),
            opt_state=optax.TraceState(numbered(number)),
            step=state.step + 1,
        )
        info = opx.StepInfo(
            loss=loss,
            terms={"data": loss},
            weights={},
            metrics={},
            leaf_norms=jnp.ones(2),
            grad_norm=norm,
            step_scale=state.step_scale,
            result=verdict(loss, norm),
        )
        state, info = opx.recover(recovery, state, proposed, info)
        return state, (state.model["b"][0], state.step_scale, info.result)

    end, seen = jax.lax.scan(step, state, (losses, norms, numbers))
    return opx.anchor(recovery, state, end), seen


def feed_events(recovery, state, events):
    losses, norms = jnp.array(events).T
    numbers = float(state.step) + 1 + np.arange(len(events))
    return feed(recovery, state, losses, norms, jnp.array(numbers, float))


@pytest.mark.parametrize(
    ("events", "models", "scale"),
    [
        ([OK, OK, NAN, OK], [1, 2, 2, 4], 1),
        # A loss of zero, or below, bounds nothing.
        ([(0.0, 1.0), OK, (-1.0, 1.0), OK], [1, 2, 3, 4], 1),
        ([OK, INF, OK, NAN], [1, 1, 3, 3], 1),
        ([OK, OK, NAN, INF], [1, 2, 2, 0], 1 / 2),
        ([OK, NAN, NAN, NAN, OK], [1, 1, 0, 0, 5], 1 / 2),
        ([OK, NAN, NAN, NAN, NAN], [1, 1, 0, 0, 0], 1 / 4),
        ([OK, OK, BIG, OK], [1, 2, 0, 4], 1 / 2),
        ([BIG, BIG, BIG], [0, 0, 0], 1 / 8),
        ([NAN, NAN, *[OK] * 5], [0, 0, 3, 4, 5, 6, 7], 1),
        ([*[OK] * 20, SPIKE, OK], [*range(1, 21), 20, 22], 1),
        ([*[OK] * 20, *[SPIKE] * 5], [*range(1, 21), 20, 20, 20, 24, 25], 1),
        ([*[OK] * 20, SPIKE, (1e7, 1e6)], [*range(1, 21), 20, 0], 1 / 2),
        # Before there is much to compare with, only what is far beyond it is a spike.
        ([OK, (1.0, 999.0), OK, (1.0, 1e6), OK], [1, 2, 3, 3, 5], 1),
    ],
)
def test_backtrack_step_by_step(events, models, scale):
    recovery = opx.Backtrack(heal_after=5, spike_after=20, retries=0)
    state, (seen, scales, _) = feed_events(recovery, begin(recovery), events)
    np.testing.assert_array_equal(seen, models)
    assert scales[-1] == scale


@pytest.mark.parametrize(
    ("events", "scales"),
    [
        ([BIG, BIG, OK, BIG], [1, 1 / 2, 1 / 2, 1 / 4]),
        ([BIG, *[OK] * 3, BIG], [1] * 5),  # forgiven
        ([BIG, *[OK] * 2, BIG, *[OK] * 3], [1, 1, 1, 1 / 2, 1 / 2, 1 / 2, 1]),
    ],
)
def test_the_first_way_back_changes_nothing(events, scales):
    recovery = opx.Backtrack(heal_after=3)
    _, (_, seen, _) = feed_events(recovery, begin(recovery), events)
    np.testing.assert_array_equal(seen, scales)


@pytest.mark.parametrize(
    ("size", "model", "back"), [(9e2, 9e2, 0), (1e4, 0, 1), (np.inf, 0, 1)]
)
def test_parameters_that_grew_beyond_reason(size, model, back):
    """Five numbers of `size` that were one: allowed is a factor of 1000."""
    recovery = opx.Backtrack(max_growth=1e3)
    state, _ = feed_events(recovery, begin(recovery), [OK])
    ones, numbers = jnp.ones(2), jnp.array([1.0, size])
    state, _ = feed(recovery, state, ones, ones, numbers)
    np.testing.assert_array_equal(state.model["b"], model)
    report = opx.fault_report(state)
    assert report["rolled_back"] == back
    assert report["exploded"] == back * np.isfinite(size)


@pytest.mark.parametrize(("moves", "back"), [(False, 1), (True, 0)])
def test_what_is_not_trained_is_no_measure_of_growth(moves, back):
    """Of a large array that stays as it is, whatever the reason."""
    recovery = opx.Backtrack(max_growth=1e3)
    end, _ = feed_events(recovery, begin(recovery), [OK])
    beside = lambda number: (numbered(number), jnp.full(3, 1e7))
    ground = recovery.init(beside(0.0), (), 3)
    begun = replace(end, model=beside(1.0), opt_state=(), recovery_state=ground)
    grown = replace(begun, model=(numbered(1e5), jnp.full(3, 1e7 + moves)))
    after = opx.anchor(recovery, begun, grown)
    assert opx.fault_report(after)["rolled_back"] == back


def test_a_scale_that_was_set_stays():
    """Only what Backtrack itself took from the steps is given back."""
    recovery = opx.Backtrack(heal_after=3, retries=0)
    state = replace(begin(recovery), step_scale=jnp.array(0.25))
    _, (_, scales, _) = feed_events(recovery, state, [*[OK] * 7, BIG, *[OK] * 9])
    np.testing.assert_array_equal(scales, [0.25] * 7 + [0.125] * 3 + [0.25] * 7)


@pytest.mark.parametrize(
    ("chunks", "grounds", "end"),
    [
        ([[OK] * 12] * 3, [0, 12, 24], 36),
        # Too few steps since the fault; then ten of them, whatever the chunk.
        ([[OK] * 12, [*[OK] * 8, NAN, *[OK] * 3], [OK] * 12], [0, 0, 24], 36),
        ([[OK] * 12, [NAN, *[OK] * 11], [NAN, *[OK] * 11]], [0, 12, 24], 36),
        # A chunk in which the run went back does not vouch for its start.
        ([[OK] * 12, [BIG, *[OK] * 11], [OK] * 12], [0, 0, 24], 36),
        ([[OK] * 12, [NAN] * 12, [OK] * 12], [0, 0, 0], 36),
        ([[OK] * 12] * 2 + [[OK] * 11 + [NAN]] * 2, [0, 12, 12, 12], 47),
    ],
)
def test_the_ground_moves_to_what_was_seen_healthy(chunks, grounds, end):
    recovery = opx.Backtrack()
    state, seen = begin(recovery), []
    for events in chunks:
        state, _ = feed_events(recovery, state, events)
        seen.append(state.recovery_state.ground[0]["w"][0])
    np.testing.assert_array_equal(seen, grounds)
    np.testing.assert_array_equal(state.model["b"], end)


@pytest.mark.parametrize(
    ("events", "models", "lost_at"),
    [
        ([OK, NAN, INF, NAN, OK, SPIKE, BIG], [1, 1, 1, 1, 5, 6, 7], None),
        ([OK, NAN, NAN, NAN, NAN, OK], [1, 1, 1, 1, 1, 6], 4),
        ([NAN, NAN, NAN, OK, NAN, NAN, NAN], [0, 0, 0, 4, 4, 4, 4], None),
    ],
)
def test_skip_step_by_step(events, models, lost_at):
    recovery = opx.Skip(max_attempts=3)
    state, (seen, _, results) = feed_events(recovery, begin(recovery), events)
    np.testing.assert_array_equal(seen, models)
    lost = np.flatnonzero(opx.is_fatal(results))
    np.testing.assert_array_equal(lost, [] if lost_at is None else [lost_at])
    # Whoever was given up stays so.
    assert opx.is_fatal(state.progress.result) == (lost_at is not None)


def expected(recovery, chunks):
    """The rules of `Backtrack` in plain Python."""
    r, inf = recovery, math.inf
    model = ground = quantile = 0.0
    scale, lowest, limit, clip_norm = 1.0, inf, inf, r.max_grad_norm
    healthy = failures = attempts = reinits = observed = unhealed = 0
    counts = Counter()
    for chunk in chunks:
        start, rolled_back, seen = model, counts["rolled_back"], []
        for loss, norm, number in chunk:
            if not math.isfinite(loss):
                result = "nonfinite_loss"
            elif not math.isfinite(norm):
                result = "nonfinite_gradient"
            elif loss > min(r.max_loss, r.max_rise * lowest):
                result = "exploded"
            elif norm > limit and failures < 3 and not r.clips:
                result = "spiked"
            else:
                result = "successful"
            if result == "successful":
                model, failures, healthy = number, 0, healthy + 1
                lowest = min(lowest, loss)
                counts["clipped"] += norm > clip_norm
                if healthy % r.heal_after == 0:
                    scale = min(1.0, scale / r.factor)
                    unhealed = max(unhealed - 1, 0)
                above = math.log(norm) > quantile
                moved = quantile + 0.1 * (r.spike_quantile - (not above))
                early = observed < r.spike_after and math.log(norm) > moved
                if observed == 0 or early or (norm > limit and not r.clips):
                    moved = math.log(norm)
                quantile = moved
                observed += 1
            else:
                counts[result] += 1
                healthy, second = 0, failures > 0 and result != "spiked"
                if second or result == "exploded":
                    model, failures, attempts = ground, 0, attempts + 1
                    unhealed += 1
                    scale *= r.factor if unhealed > r.retries else 1
                    counts["rolled_back"] += 1
                else:
                    failures += 1
                    counts["skipped"] += 1
                if attempts > r.max_attempts and reinits >= r.max_reinits:
                    result = "attempts_exhausted"
            factor = r.spike_factor ** (1 if observed >= r.spike_after else 3)
            limit = factor * math.exp(quantile) if observed else inf
            clip_norm = min(r.max_grad_norm, limit) if r.clips else inf
            seen.append((model, scale, result))
        lowest *= r.max_rise
        broken = not math.isfinite(model)
        if healthy >= 10 and not broken and counts["rolled_back"] == rolled_back:
            ground, attempts = start, 0
        if broken:
            model, attempts, unhealed = ground, attempts + 1, unhealed + 1
            scale *= r.factor if unhealed > r.retries else 1
            counts["rolled_back"] += 1
        if attempts > r.max_attempts and reinits < r.max_reinits:
            model, attempts, reinits, lowest = ground, 0, reinits + 1, inf
            counts["reinitialised"] += 1
        yield seen, model, ground, counts, clip_norm


def random_chunks(seed, num_chunks=30, steps=15):
    """Mostly healthy steps; sometimes a fault, a burst of them, a model that is NaN."""
    rng = np.random.default_rng(seed)
    losses = rng.lognormal(0, 1, (num_chunks, steps))
    norms = rng.lognormal(0, 1, (num_chunks, steps))
    numbers = 1.0 + np.arange(num_chunks * steps).reshape(num_chunks, steps)
    trouble = rng.choice([0, 0.02, 0.2], num_chunks)[:, None]
    for array, value in (
        *((losses, np.nan), (norms, np.inf), (losses, 1e7)),
        *((norms, 1e5), (norms, 1e9), (losses, 30.0)),
    ):
        array[rng.random(array.shape) < trouble / 2] = value
    numbers[rng.random(num_chunks) < 0.1, -1] = np.nan
    return np.stack([losses, norms, numbers], axis=-1)


@pytest.mark.parametrize("clips", [False, True])
def test_backtrack_follows_its_rules(clips):
    recovery = opx.Backtrack(
        heal_after=7,
        max_attempts=3,
        max_reinits=5,
        max_rise=300.0,
        spike_after=20,
        clips=clips,
        max_grad_norm=50.0 if clips else np.inf,
    )
    met = Counter()
    for seed in range(8):
        chunks, state = random_chunks(seed), begin(recovery)
        assert state.clip_norm == (recovery.max_grad_norm if clips else None)
        rules_of = expected(recovery, chunks.tolist())
        for chunk, rules in zip(chunks, rules_of, strict=True):
            steps, model, ground, counts, clip_norm = rules
            state, (models, scales, results) = feed(
                recovery, state, *jnp.array(chunk.T)
            )
            names = [RESULT_NAMES[i] for i in results._value]
            seen = list(zip(models.tolist(), scales.tolist(), names, strict=True))
            assert str(seen) == str(steps)  # NaN equals NaN
            # The arrays in which no fault showed are not drawn anew.
            for tree in (state.model, state.opt_state.trace):
                assert_same_bits(tree, numbered(model))
            for tree in state.recovery_state.ground:
                np.testing.assert_array_equal(bits(tree)[0], ground)
            report = opx.fault_report(state)
            assert {name: report[name] for name in CAUSES} == {
                name: counts[name] for name in CAUSES
            }
            if clips:
                np.testing.assert_allclose(state.clip_norm, clip_norm, rtol=1e-12)
        met += counts
    unmet = {"spiked"} if clips else {"clipped"}
    assert set(met) == set(CAUSES) - unmet


def test_parameters_are_drawn_anew_where_the_fault_showed():
    recovery = opx.Backtrack(max_attempts=2, max_reinits=1)
    model = {"b": 2 * jnp.arange(3.0), "w": jnp.arange(500.0)}
    nan, first = jnp.array(jnp.nan), jnp.array([1.0, jnp.nan])

    @eqx.filter_jit
    def chunk(start, leaf_norms):
        # As `feed`, which knows only models that are one number.
        def step(state, norms):
            bad = opx.RESULTS.nonfinite_loss
            info = opx.StepInfo(
                nan, {"a": nan}, {}, {}, norms, nan, state.step_scale, bad
            )
            proposed = replace(state, step=state.step + 1)
            state, info = opx.recover(recovery, state, proposed, info)
            return state, info.result

        state, results = jax.lax.scan(step, start, leaf_norms)
        broken = jtu.tree_map(lambda x: x * jnp.nan, state.model)
        return opx.anchor(recovery, start, replace(state, model=broken)), results

    state = opx.init(OPTIM, SAMPLER, recovery, model, key=jr.key(0))
    state, _ = chunk(state, first[None])
    assert_same_bits(state.model, model)
    # Only where the first fault showed: later ones may be its consequence.
    state, results = chunk(state, jnp.full((6, 2), jnp.nan))
    assert not opx.is_fatal(results).any()
    assert opx.fault_report(state)["reinitialised"] == 1
    np.testing.assert_array_equal(state.model["b"], model["b"])
    # Half the old values, and noise of half their size.
    noise = state.model["w"] - 0.5 * model["w"]
    size = 0.5 * np.sqrt(np.mean(np.square(model["w"])))
    assert 0.9 * size < np.std(noise) < 1.1 * size
    assert abs(np.mean(noise)) < 0.15 * size
    state, results = chunk(state, jnp.full((6, 2), jnp.nan))
    assert opx.is_fatal(results)[-1]
    assert opx.fault_report(state)["reinitialised"] == 1


def test_remedies_in_any_order():
    """Each way back takes one more than the last, and healthy steps undo the cuts."""
    order = (opx.Remedy.REDRAW, opx.Remedy.CLIP, opx.Remedy.SHORTEN)
    recovery = opx.Backtrack(
        clips=True,
        max_grad_norm=8.0,
        heal_after=20,
        retries=0,
        remedies=order,
    )
    state = begin(recovery)
    for _ in range(2):
        state, _ = feed_events(recovery, state, [OK] * 12)
    assert jnp.all(state.recovery_state.ground[0]["b"] == 12)
    events = [BIG, BIG, BIG, *[OK] * 9]
    state, (models, scales, _) = feed_events(recovery, state, events)
    assert scales.tolist() == [1.0, 1.0, *[0.5] * 10] and state.clip_norm == 8 / 4
    # Half of twelve, and noise of that size, another each time.
    drawn = np.asarray(models[:3])
    assert len(set(drawn)) == 3 and np.max(np.abs(drawn - 6)) < 6 * 4
    assert opx.fault_report(state)["reinitialised"] == 3
    state, (_, scales, _) = feed_events(recovery, state, [OK] * 12)
    assert scales[-1] == 1.0 and state.clip_norm == 4.0
    # A model that is NaN at the end of a chunk is a way back like any other: the first
    # of those to a new ground.
    numbers = jnp.append(jnp.ones(11), jnp.nan)
    state, _ = feed(recovery, state, jnp.ones(12), jnp.ones(12), numbers)
    assert jnp.all(jnp.isfinite(state.model["b"])) and state.step_scale == 1.0
    assert opx.fault_report(state)["rolled_back"] == 4
    for bad in ([], (opx.Remedy.SHORTEN,) * 2, ("SHORTEN",)):
        with pytest.raises((ValueError, TypeError), match="remedies"):
            opx.Backtrack(remedies=bad)
    with pytest.raises(ValueError, match="`clips` = False"):
        opx.Backtrack(remedies=order)


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_the_quantile_of_the_norms(quantile):
    recovery = opx.Backtrack(spike_quantile=quantile, clips=True, spike_factor=3.0)
    norms = np.random.default_rng(0).lognormal(2.0, 1.5, (40, 100))
    state, limits = begin(recovery), []
    for chunk in norms:
        events = np.stack([np.ones(100), chunk], axis=1)
        state, _ = feed_events(recovery, state, events)
        limits.append(np.log(state.clip_norm / 3))
    found = np.exp(np.mean(limits[5:]))
    np.testing.assert_allclose(found, np.quantile(norms, quantile), rtol=0.15)


@pytest.mark.parametrize("limit", [None, np.inf, 0.5, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_scale_and_clipping_reach_the_update(limit, scale):
    recipe, model = regression(recovery=opx.NoRecovery())
    state = recipe.init(model, key=jr.key(0))
    state = replace(
        state,
        step_scale=jnp.array(scale),
        clip_norm=None if limit is None else jnp.array(limit),
    )
    batch = recipe.sampler.batch(
        state.sampler_state, state.key_for("batch"), state.step
    )
    optim = optax.sgd(0.1)
    proposed, info = opx.train_step(recipe.problem, optim, state, batch)
    loss = lambda m: recipe.problem.terms(m, batch, state.key)[0]["data"]
    grads = eqx.filter_grad(loss)(model)
    clip = optax.identity() if limit is None else optax.clip_by_global_norm(limit)
    grads, _ = clip.update(grads, clip.init(grads))
    params = eqx.filter(model, eqx.is_inexact_array)
    wanted = jtu.tree_map(lambda p, g: p - 0.1 * scale * g, params, grads)
    found = eqx.filter(proposed.model, eqx.is_inexact_array)
    jtu.tree_map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), found, wanted
    )
    assert info.grad_norm > 0.5  # reported before clipping
    assert info.step_scale == scale


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        # The gradient of a value that is NaN is sound: no array shows it.
        ({"added": np.nan}, {"step": 7, "term": "data", "array": None}),
        (
            {"factor": np.nan, "leaves": 3},
            {"step": 7, "term": None, "array": ".layers[1].bias"},
        ),
    ],
)
def test_fault_report(fault, first):
    recipe = faulty("backtrack", [7, 9], **fault)
    report = opx.fault_report(run(recipe, num_chunks=1), ["data"])
    assert report.pop("first") == first
    cause = "nonfinite_loss" if "added" in fault else "nonfinite_gradient"
    assert report == dict.fromkeys(CAUSES, 0) | {cause: 2, "skipped": 2}


class Terms(opx.AbstractProblem):
    bad: str = eqx.field(static=True)

    def terms(self, model, batch, key):
        value = jnp.sum(model**2)
        names = ("b", "c", "a")
        return {n: value / 0 if n == self.bad else value for n in names}, opx.Aux()


@pytest.mark.parametrize("bad", ["a", "b", "c"])
def test_fault_report_names_the_term(bad):
    recipe = opx.Recipe(Terms(bad), optax.sgd(0.1), opx.Fixed(X), steps=1)
    state, _ = recipe(recipe.init(jnp.ones(2), key=jr.key(0)))
    report = opx.fault_report(state, ["c", "a", "b"])
    assert report["first"]["term"] == bad


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_a_bad_member_leaves_the_others_alone(how):
    recipe = replace(faulty("backtrack"), steps=20)
    schedules = np.zeros((8, END))
    # NaN from the first step on, now and then, and in the initial parameters.
    schedules[2], schedules[5, ::7] = np.nan, np.nan
    poison = jnp.ones(8).at[6].set(np.nan)

    @eqx.filter_vmap
    def init(key, poison):
        model = mlp(key)
        model = eqx.tree_at(
            lambda m: m.layers[1].bias, model, replace_fn=poison.__mul__
        )
        return recipe.init(model, key=key)

    keys = jr.split(jr.key(5), 8)

    @eqx.filter_jit
    def chunks(states, added):
        def one(member):
            state, added = member
            mine = eqx.tree_at(lambda r: r.problem.added, recipe, added)
            state, _ = mine(state)
            return mine(state)

        return opx.ensemble(one, (states, added), how=how)

    sound, _ = chunks(init(keys, jnp.ones(8)), jnp.zeros((8, END)))
    mixed, _ = chunks(init(keys, poison), jnp.array(schedules))
    member = lambda states, i: jtu.tree_map(
        lambda x: x[i], eqx.filter(states, eqx.is_array)
    )
    for i in {0, 1, 3, 4, 7}:
        assert_same_bits(member(mixed, i), member(sound, i))
    results = [RESULT_NAMES[i] for i in mixed.progress.result._value]
    lost = [i for i, name in enumerate(results) if name == "attempts_exhausted"]
    assert lost == [2, 6]
    assert is_finite(member(mixed.model, 5))


@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_no_buffer_is_given_away_twice(recovery, optim, key):
    recipe, model = regression(
        batch_size=50, optim=OPTIMIZERS[optim](), recovery=RECOVERIES[recovery]()
    )
    state = recipe.init(model, key=key)
    arrays = jtu.tree_leaves(eqx.filter((state, model, key), eqx.is_array))
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    arrays = [x._base_array if is_key(x) else jnp.asarray(x) for x in arrays]
    places = Counter(x.unsafe_buffer_pointer() for x in arrays)
    assert max(places.values()) == 1
