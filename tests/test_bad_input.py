"""What is wrong is said at once, by the name of the argument, and with a remedy."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import optax
import pytest

import opifex as opx

from .helpers import mlp, Poisson, poisson, regression, SAMPLERS


@pytest.fixture(autouse=True)
def _as_without_a_type_checker(monkeypatch):
    # It would come before our own checks, and those who train run without one.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class Told(opx.AbstractProblem):
    """Answers with what it is told."""

    answer: object

    def terms(self, model, batch, key):
        return self.answer


ONE = jnp.ones(())
AUX = opx.Aux()


def recipe(**kwargs):
    return replace(regression()[0], **kwargs)


def start(model=None, key=None, **kwargs):
    model = mlp(jr.key(0)) if model is None else model
    key = jr.key(0) if key is None else key
    return recipe(**kwargs).init(model, key=key)


def init(optim=optax.sgd(0.1), key=None):  # noqa: B008
    key = jr.key(0) if key is None else key
    sampler, recovery = regression()[0].sampler, opx.Skip()
    return opx.init(optim, sampler, recovery, mlp(jr.key(0)), key=key)


def fit(chunk=None, num_chunks=1, **kwargs):
    chunk = recipe() if chunk is None else chunk
    return opx.fit(chunk, start(), num_chunks=num_chunks, **kwargs)


def fit_told(*answer):
    return fit(recipe(problem=Told(answer if len(answer) > 1 else answer[0])))


def fit_pairs(inputs, targets, **kwargs):
    return fit(recipe(sampler=opx.Fixed(opx.Pairs(inputs, targets)), **kwargs))


def fit_poisson(**kwargs):
    recipe, model = poisson(**kwargs)
    return opx.fit(recipe, recipe.init(model, key=jr.key(0)), num_chunks=1)


WHOLE = "must be a whole number of at least"
COUNTS = [0, -1, True, 1.0, "1"]
KEY = r"`key` must be a single typed key, as from `jax.random.key\(0\)`"

BAD = {
    "init optim": (lambda: init(optim="adam"), TypeError, "`optim` must be an `optax"),
    "init optim class": (
        lambda: init(optim=optax.adam),
        TypeError,
        r"`optim` must be.*got <function adam.*Make one with.*`optax.adam\(1e-3\)`",
    ),
    "recipe optim": (
        lambda: recipe(optim=1e-3),
        TypeError,
        "`optim` must be an `optax.GradientTransformation`, got 0.001 of type float",
    ),
    "raw key": (lambda: init(key=jnp.zeros(2, jnp.uint32)), TypeError, KEY),
    "int key": (lambda: init(key=0), TypeError, KEY + ", got int"),
    "many keys": (lambda: start(key=jr.split(jr.key(0))), TypeError, KEY + r".*\(2,\)"),
    "recipe raw key": (lambda: start(key=jr.PRNGKey(0)), TypeError, KEY + ".*uint32"),
    "nothing to train": (
        lambda: init_of(lambda x: x),
        ValueError,
        "`model` has no array to train. See `trainable`",
    ),
    "nothing trained": (
        lambda: start(trainable=lambda _: False),
        ValueError,
        "`model` has no array to train. See `trainable`",
    ),
    "problem": (
        lambda: recipe(problem=opx.mse),
        TypeError,
        "`problem` must be an instance of `AbstractProblem`, got <function",
    ),
    "problem class": (
        lambda: recipe(problem=opx.Supervised),
        TypeError,
        "`problem` must be an instance of `AbstractProblem`, got <class",
    ),
    "sampler": (
        lambda: recipe(sampler=jnp.ones(3)),
        TypeError,
        "`sampler` must be an instance of `AbstractSampler`",
    ),
    "recovery": (
        lambda: recipe(recovery=None),
        TypeError,
        "`recovery` must be an instance of `AbstractRecovery`, got None",
    ),
    "weighting": (
        lambda: recipe(weighting="ones"),
        TypeError,
        "`weighting` must be an instance of `AbstractWeighting`, got 'ones'",
    ),
    "precision": (
        lambda: recipe(precision="float32"),
        TypeError,
        "`precision` must be an instance of `Precision`, got 'float32'",
    ),
    **{
        f"{name} {value!r}": (
            lambda name=name, value=value: recipe(**{name: value}),
            ValueError,
            f"`{name}` {WHOLE} 1, got {value!r}",
        )
        for name in ("steps", "accumulate")
        for value in COUNTS
    },
    **{
        f"num_chunks {value!r}": (
            lambda value=value: fit(num_chunks=value),
            ValueError,
            f"`num_chunks` {WHOLE} 0, got {value!r}",
        )
        for value in COUNTS[1:]
    },
    **{
        f"time_budget {value}": (
            lambda value=value: fit(time_budget=value),
            ValueError,
            f"`time_budget` must be positive, got {value}",
        )
        for value in (0, -1.0, np.nan)
    },
    "purpose": (
        lambda: start().key_for("bach"),
        ValueError,
        r"Unknown name 'bach' in `purpose`\. Did you mean 'batch'\? Known names are \[",
    ),
    "weighting name": (
        lambda: fit_poisson(weighting=opx.Static({"bounday": 2.0})),
        ValueError,
        r"Unknown name 'bounday' in `weighting`\. Did you mean 'boundary'\?",
    ),
    "rad": (
        lambda: SAMPLERS["rad"]().resample(
            SAMPLERS["rad"]().init(jr.key(0)), Told(({"a": ONE}, AUX)), None, jr.key(0)
        ),
        TypeError,
        "`problem` must be an `AbstractResidualProblem`, got Told.*`Uniform`",
    ),
    "rad name": (
        lambda: fit_poisson(sampler=rad_of("wall")),
        ValueError,
        r"Unknown name 'wall' in `num_candidates`\..*\['boundary', 'interior'\]",
    ),
    "shapes": (
        lambda: fit_pairs(jnp.ones((4, 1)), jnp.ones(4)),
        ValueError,
        r"`model` and the `targets` must have one shape, got \(4, 1\) and \(4,\)",
    ),
    "row loss": (
        lambda: fit(recipe(problem=opx.Supervised(lambda p, t: p - t))),
        ValueError,
        r"`loss` must give one number a row, of shape \(16,\), got \(16, 1\)",
    ),
    "metric": (
        lambda: fit(recipe(problem=opx.Supervised(metrics={"m": lambda p, t: 0 * p}))),
        ValueError,
        r"`m` must give one number a row",
    ),
    "huber": (lambda: opx.huber(0.0), ValueError, "`delta` must be positive, got 0.0"),
    "no scalar": (
        lambda: fit_told({"a": jnp.ones(3)}, AUX),
        ValueError,
        r"`Told.terms` must give real.* float64 of shape \(3,\) for 'a'. Take the mean",
    ),
    "complex": (
        lambda: fit_told({"a": ONE.astype(complex)}, AUX),
        ValueError,
        "real scalars, got complex128 .* for 'a'",
    ),
    "integer": (
        lambda: fit_told({"a": jnp.ones((), int)}, AUX),
        ValueError,
        "real scalars, got int64 .* for 'a'",
    ),
    "number": (
        lambda: fit_told({"a": 1.0}, AUX),
        ValueError,
        "scalars, got 1.0 for 'a'",
    ),
    **{
        f"terms {i}": (
            lambda answer=answer: fit_told(*answer),
            TypeError,
            "`Told.terms` must return a dictionary of scalars, not empty, and an `Aux`",
        )
        for i, answer in enumerate([({}, AUX), (ONE, AUX), ({"a": ONE}, {}), (ONE,)])
    },
    **{
        f"backtrack {name} {value}": (
            lambda name=name, value=value: opx.Backtrack(**{name: value}),
            ValueError,
            rf"`{name}` must .*, got {value}\.",
        )
        for name, values in {
            "factor": (0.0, 1.0, -1.0, np.nan),
            "spike_quantile": (0.0, 1.0, 2.0),
            "max_loss": (0.0, np.nan),
            "max_grad_norm": (-1.0, np.nan),
            "max_rise": (1.0, np.nan),
            "max_growth": (1.0, np.nan),
            "retries": (-1, 0.5),
            "spike_factor": (0.5, np.nan),
            "heal_after": (0, 2.0),
            "max_attempts": (0, True),
            "max_reinits": (-1, 0.5),
            "spike_after": (0,),
        }.items()
        for value in values
    },
    "skip": (lambda: opx.Skip(0), ValueError, f"`max_attempts` {WHOLE} 1, got 0"),
    "skip clips": (lambda: opx.Skip(clips=True), TypeError, "argument 'clips'"),
    **{
        f"validation {name} {value}": (
            lambda name=name, value=value: opx.Validation(**{name: value}),
            ValueError,
            f"`{name}` must .*, got {value}",
        )
        for name, values in {
            "every": (0, 1.5),
            "patience": (0, 2.5, np.nan, -np.inf, True),
            "shorten_after": (0, 2.5, np.nan),
            "factor": (0.0, 1, np.nan),
            "min_delta": (-1e-3, np.nan, np.inf),
        }.items()
        for value in values
    },
    "compute": (
        lambda: opx.Precision(compute=int),
        ValueError,
        "`compute` must be a float dtype, got int64",
    ),
    "output": (
        lambda: opx.Precision(output="complex64"),
        ValueError,
        "`output` must be a float dtype, got complex64",
    ),
    **{
        f"loss_scale {value}": (
            lambda value=value: opx.Precision(loss_scale=value),
            ValueError,
            f"`loss_scale` must be positive, got {value}",
        )
        for value in (0.0, -1.0, np.nan, np.inf)
    },
    **{
        f"chunk {i}": (
            lambda chunk=chunk: fit(chunk),
            TypeError,
            "`chunk` must map a `TrainingState` to the next one and a `StepInfo`, got",
        )
        for i, chunk in enumerate(
            [
                lambda state: state,
                lambda state: (state, {"loss": state.step}),
                lambda state: (*recipe()(state), 1),
                lambda state: recipe()(state)[::-1],
            ]
        )
    },
    "accumulate": (
        lambda: fit_pairs(jnp.ones((10, 1)), jnp.ones((10, 1)), accumulate=3),
        ValueError,
        r"`accumulate` must divide the rows.*got 3 for `batch.inputs` of.*\(10, 1\)",
    ),
    "history": (
        lambda: opx.History("run.txt"),
        ValueError,
        r"`path` must end in .csv or .jsonl, got 'run.txt'",
    ),
    "join": (lambda: opx.join([]), ValueError, "`chunks` is empty: no chunk was run"),
}


def init_of(model):
    return opx.init(
        optax.sgd(0.1), regression()[0].sampler, opx.Skip(), model, key=jr.key(0)
    )


def rad_of(name):
    domains = SAMPLERS["rad"]().domains | {name: opx.Box([0.0], [1.0])}
    return opx.RAD(domains, dict.fromkeys(domains, 4), {name: 8})


@pytest.mark.parametrize(("call", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


class NoResiduals(opx.AbstractProblem):
    """Poisson's equation for those who know no residuals; its steps are counted."""

    steps: list = eqx.field(static=True)

    def terms(self, model, batch, key):
        terms, aux = Poisson().terms(model, batch, key)
        jax.debug.callback(lambda: self.steps.append("step"))
        return terms, aux


def test_nothing_runs_before_all_is_checked():
    # RAD asks for residuals once a chunk; that must not wait for the end of the first.
    steps, opened = [], []

    class Opened(opx.AbstractCallback):
        def init(self, state, num_chunks):
            opened.append("opened")

        def on_chunk(self, memory, state, infos):
            return memory, False

        def close(self, memory, state):
            pass

    good, model = poisson()
    good = replace(good, problem=NoResiduals(steps))
    bad = replace(good, sampler=SAMPLERS["rad"]())
    vector = opx.Validation(lambda *_: jnp.ones(3))
    for chunk, kind, message, options in (
        (bad, TypeError, "`problem` must be an `AbstractResidualProblem`", {}),
        (good, ValueError, "`loss` must be a scalar", {"validation": vector}),
    ):
        state = chunk.init(model, key=jr.key(0))
        with pytest.raises(kind, match=message):
            opx.fit(chunk, state, num_chunks=2, callbacks=[Opened()], **options)
        jax.effects_barrier()
        assert steps == opened == []
    opx.fit(good, state, num_chunks=2)
    jax.effects_barrier()
    assert len(steps) == 20
