from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Float, PyTree

from ._custom_types import Key, Model, Scalar
from ._least_squares import LeastSquares
from ._misc import check_count, safe_sqrt, squared, trainable, tree_copy
from ._objective import Evaluation, Objective
from ._optimizer.base import check_optimizer
from ._precision import Precision
from ._problem.base import AbstractProblem
from ._recovery.base import AbstractRecovery
from ._results import RESULTS
from ._sampler.base import AbstractSampler
from ._state import Progress, StepInfo, TrainingState
from ._weighting.base import AbstractWeighting, check_needs, Observed, renew
from ._weighting.static import Static


def init(
    optim: optax.GradientTransformation,
    sampler: AbstractSampler,
    recovery: AbstractRecovery,
    model: Model,
    *,
    weighting: AbstractWeighting = Static(),
    terms: Sequence[str] | Mapping[str, int | jax.ShapeDtypeStruct] = (),
    trainable: Callable[[Any], PyTree[bool]] = trainable,
    key: Key,
) -> TrainingState[Model]:
    """The state before the first step.

    **Arguments:**

    - `optim`: an optax optimizer.
    - `sampler`, `recovery`, `weighting`: as will be used in the loop.
    - `model`: any pytree. Its buffers are copied.
    - `terms`: the names of the terms of the loss, for weightings that ask for them; for
        weightings of points a dictionary, with the number of points of each term (or
        the shape and dtype of its residuals, if they are not default floats).
    - `trainable`: maps the model to a pytree of booleans (or a prefix of one): which
        arrays are trained. The others are carried along.
    - `key`: a typed key, from `jax.random.key`. All randomness derives from it.
    """
    check_optimizer("optim", optim)
    check_key(key)
    model = tree_copy(model)
    params = eqx.filter(model, trainable(model))
    if not jtu.tree_leaves(params):
        raise ValueError("`model` has no array to train. See `trainable`.")
    opt_state = tree_copy(optim.init(params))
    first = recovery.first_clip_norm
    num_leaves = len(jtu.tree_leaves(eqx.filter(model, eqx.is_inexact_array)))
    return TrainingState(
        model=model,
        opt_state=opt_state,
        # Step 0 of its own purpose: a key of the state, as every other.
        sampler_state=tree_copy(sampler.init(jr.fold_in(jr.fold_in(key, 0), 0))),
        weighting_state=tree_copy(weighting.init(_shapes(terms))),
        recovery_state=recovery.init(model, opt_state, num_leaves),
        step_scale=jnp.ones((), jnp.result_type(float)),
        clip_norm=None if first is None else jnp.full((), first, float),
        progress=Progress.start(),
        step=jnp.zeros((), jnp.int32),
        key=tree_copy(key),
    )


def train_step(
    problem: AbstractProblem,
    optim: optax.GradientTransformation,
    state: TrainingState[Model],
    batch: PyTree,
    *,
    weighting: AbstractWeighting = Static(),
    trainable: Callable[[Any], PyTree[bool]] = trainable,
    precision: Precision = Precision(),
    accumulate: int = 1,
    remat: bool = False,
) -> tuple[TrainingState[Model], StepInfo]:
    """Proposes one step of the optimizer. Pure; [`recover`][] decides about it.

    **Arguments:**

    - `problem`: says how wrong the model is.
    - `optim`: the optimizer that `state` was made for. It is handed `value`, `grad` and
        `value_fn` besides, for those that search along a line or look at residuals: the
        latter is an [`AbstractSquares`][], whose methods raise if the loss is none.
    - `state`: where training is.
    - `batch`: from `sampler.batch`.
    - `weighting`: how much each term counts.
    - `trainable`: as in [`init`][].
    - `precision`: in which precision the loss is computed.
    - `accumulate`: in how many microbatches to evaluate it, one after the other. Each
        term is weighted by its count of points, so the step is that of the full batch.
    - `remat`: whether to recompute activations in the backward pass, to save memory.

    **Returns:** the proposed state, and what was seen on the way, at `state.model`.
    """
    check_count("accumulate", accumulate)
    check_needs(weighting, problem)
    params, rest = eqx.partition(state.model, trainable(state.model))
    key = state.key_for("loss")
    objective = Objective(
        problem,
        weighting,
        state.weighting_state,
        rest,
        batch,
        key,
        precision,
        accumulate,
        remat,
    )
    value, seen, grads = objective.value_and_grad(params)
    # From here on the weights of points stand still, for a line search too.
    objective = objective.settled(seen)
    norms, norm = _norms(state.model, grads)
    if state.clip_norm is not None:
        grads = _clip(grads, norm, state.clip_norm)
    extra = {"value": value, "grad": grads, "value_fn": LeastSquares(objective)}
    moved, opt_state = updated(optim, state, params, grads, **extra)
    observed = _observed(state, objective, params, seen)
    proposed = replace(
        state,
        model=eqx.combine(moved, seen.rest, rest),
        opt_state=opt_state,
        weighting_state=renew(weighting, state.weighting_state, observed),
        step=state.step + 1,
    )
    return proposed, StepInfo(
        loss=value,
        terms=seen.terms,
        weights=seen.weights,
        metrics=seen.metrics | weighting.metrics(proposed.weighting_state),
        leaf_norms=norms,
        grad_norm=norm,
        step_scale=state.step_scale,
        result=_verdict(value, norm),
    )


def _observed(
    state: TrainingState, objective: Objective, params: PyTree, seen: Evaluation
) -> Observed:
    """What the weighting may look at, some of it computed only if it does."""
    return Observed(
        step=state.step,
        terms=seen.terms,
        residuals=seen.residuals or {},
        batch=objective.batch,
        key=objective.key,
        term_gradients=lambda: objective.term_gradients(params, seen.terms),
        point_gradients=lambda n: objective.point_gradients(params, n),
    )


def updated(
    optim: optax.GradientTransformation,
    state: TrainingState,
    params: PyTree,
    grads: PyTree,
    **extra: Any,
) -> tuple[PyTree, Any]:
    """The trained parameters after one step of the optimizer, and its state; `extra` is
    for optimizers that look at more than the gradient."""
    update = optax.with_extra_args_support(optim).update
    # Optax is not strict about dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = update(grads, state.opt_state, params, **extra)
    updates = jtu.tree_map(lambda u: state.step_scale.astype(u.dtype) * u, updates)
    return eqx.apply_updates(params, updates), opt_state


def _shapes(
    terms: Sequence[str] | Mapping[str, int | jax.ShapeDtypeStruct],
) -> dict[str, jax.ShapeDtypeStruct]:
    def shape(name):
        given = terms[name] if isinstance(terms, Mapping) else ()
        if isinstance(given, jax.ShapeDtypeStruct):
            return given
        dims = (given,) if isinstance(given, int) else given
        return jax.ShapeDtypeStruct(dims, jnp.result_type(float))

    return {name: shape(name) for name in terms}


def check_key(key: Any) -> None:
    """Raises unless `key` is a single typed key."""
    typed = eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape != ():
        raise TypeError(
            "`key` must be a single typed key, as from `jax.random.key(0)`, got "
            f"{getattr(key, 'dtype', type(key).__name__)} of shape "
            f"{getattr(key, 'shape', ())}."
        )


def _norms(model: PyTree, grads: PyTree) -> tuple[Float[Array, " leaves"], Scalar]:
    """The gradient norm of each inexact array of the model, and of all together."""
    is_none = lambda x: x is None
    arrays = jtu.tree_leaves(eqx.filter(model, eqx.is_inexact_array), is_leaf=is_none)
    squares = [
        jnp.zeros(()) if g is None else jnp.sum(squared(g)).astype(float)
        for x, g in zip(arrays, jtu.tree_leaves(grads, is_leaf=is_none), strict=True)
        if x is not None
    ]
    squares = jnp.stack(squares)
    return safe_sqrt(squares), safe_sqrt(jnp.sum(squares))


def _clip(grads: PyTree, norm: Scalar, limit: Scalar) -> PyTree:
    # Written so that neither an infinite limit nor a zero norm has a NaN for gradient.
    ratio = jnp.minimum(norm, limit) / jnp.where(norm > 0, norm, 1)
    factor = jnp.where(norm > limit, ratio, 1)
    return jtu.tree_map(lambda g: factor.astype(g.dtype) * g, grads)


def _verdict(value: Scalar, norm: Scalar) -> RESULTS:
    gradient = RESULTS.where(
        jnp.isfinite(norm), RESULTS.successful, RESULTS.nonfinite_gradient
    )
    return RESULTS.where(jnp.isfinite(value), gradient, RESULTS.nonfinite_loss)
