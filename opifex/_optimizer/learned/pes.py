"""Meta-training by persistent evolution strategies."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..._custom_types import Count, Key, Scalar
from ..._misc import check_count, tree_where
from .network import check_weights, random_weights, Weights
from .transformation import check_rate, learned


# A run that goes astray counts as one whose loss is e^3 times that at its start.
WORST = 3.0
# Of the outer steps: PES has outliers.
MAX_NORM = 1.0


class Task(eqx.Module):
    """A family of things to train.

    **Arguments:**

    - `init`: maps a key to one member of the family: the parameters that training
        starts from, and data (coefficients, points).
    - `loss`: of the parameters, the data and a key, for those that draw batches.
    """

    init: Callable[[Key], tuple[PyTree, PyTree]]
    loss: Callable[[PyTree, PyTree, Key], Scalar]


class Pair(eqx.Module):
    """Two runs on one member of a family, perturbed by opposite noise."""

    params: PyTree  # leading axis: the two
    opt_state: PyTree
    data: PyTree
    drift: Float[Array, " weights"]  # noise that was added since the start
    first: Scalar  # logarithm of the loss at the start
    step: Count
    horizon: Count
    key: Key


class MetaState(eqx.Module):
    """Where meta-training is: what a resumed one goes on from."""

    weights: Weights
    opt_state: PyTree
    pairs: tuple[Pair, ...]  # by task; leading axis: `num_pairs`
    step: Count
    key: Key


class PES(eqx.Module):
    """Persistent evolution strategies: unbiased in spite of truncation, since the noise
    of a run is summed up from its start, and not only over its last unroll.

    The loss of an unroll is the mean over its steps of the logarithm of the loss, from
    that at the start of the run, times the power `late` of the share of the run that is
    over (and times `late + 1`). Each run is as long as it was drawn to be, uniformly
    in the logarithm between `unroll` and `horizon`, and begins anew on another member.

    ??? cite "Reference"

        P. Vicol, L. Metz and J. Sohl-Dickstein, "Unbiased gradient estimation in
        unrolled computation graphs with persistent evolution strategies", International
        Conference on Machine Learning, 2021 (algorithm 2).
    """

    tasks: tuple[Task, ...]
    unroll: int = 20
    horizon: int = 1000
    num_pairs: int = 8
    sigma: int | float = 0.02
    learning_rate: int | float | optax.Schedule = 1e-3
    inner_rate: int | float = 1e-3
    late: int | float = 0

    def __check_init__(self):
        if not self.tasks:
            raise ValueError("`tasks` is empty; give at least one `Task`.")
        for task in self.tasks:
            if not isinstance(task, Task):
                raise TypeError(f"`tasks` must hold `Task`s, got {task!r}.")
        check_count("unroll", self.unroll)
        check_count("horizon", self.horizon, least=self.unroll)
        check_count("num_pairs", self.num_pairs)
        check_rate("sigma", self.sigma)
        check_rate("inner_rate", self.inner_rate)
        if not callable(self.learning_rate):
            check_rate("learning_rate", self.learning_rate)

    def init(self, key: Key, weights: Weights | None = None) -> MetaState:
        """Before the first step, from `weights` or from random ones."""
        begun = random_weights(jr.fold_in(key, 0)) if weights is None else weights
        check_weights(begun)
        pairs = tuple(
            jax.vmap(lambda k, task=task: self.begin(task, begun, k))(
                jr.split(jr.fold_in(key, i + 1), self.num_pairs)
            )
            for i, task in enumerate(self.tasks)
        )
        return MetaState(
            begun,
            self.optim.init(cast(Any, begun)),
            pairs,
            jnp.zeros((), jnp.int32),
            jr.fold_in(key, len(pairs) + 1),
        )

    @property
    def optim(self) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(MAX_NORM)
        return optax.chain(clip, optax.adam(self.learning_rate, b2=0.99))

    def begin(self, task: Task, weights: Weights, key: Key) -> Pair:
        """Two runs at their start."""
        params, data = task.init(jr.fold_in(key, 0))
        first = jnp.log(task.loss(params, data, jr.fold_in(key, 1)))
        state = learned(weights, self.inner_rate, False).init(params)
        both = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
        low, high = jnp.log(float(self.unroll)), jnp.log(float(self.horizon))
        horizon = jnp.exp(jr.uniform(jr.fold_in(key, 2), (), float, low, high))
        return Pair(
            both(params),
            both(state),
            data,
            jnp.zeros_like(ravel_pytree(weights)[0]),
            first,
            jnp.zeros((), jnp.int32),
            jnp.ceil(horizon - 1e-3).astype(jnp.int32),
            jr.fold_in(key, 3),
        )

    def advance(
        self, task: Task, weights: Weights, pair: Pair, key: Key
    ) -> tuple[Pair, Float[Array, " weights"], Scalar]:
        """The pair after another unroll, its term of the gradient, and its loss."""
        flat, unravel = ravel_pytree(weights)
        fresh = self.begin(task, weights, jr.fold_in(key, 0))
        pair = tree_where(pair.step >= pair.horizon, fresh, pair)
        noise = self.sigma * jr.normal(jr.fold_in(key, 1), flat.shape, flat.dtype)
        drift = pair.drift + noise

        def run(noise, params, state):
            optim = learned(unravel(flat + noise), self.inner_rate, False)

            def step(carry, i):
                params, state = carry
                at = lambda p: task.loss(p, pair.data, jr.fold_in(pair.key, i))
                value, grad = jax.value_and_grad(at)(params)
                updates, state = optim.update(grad, state, params, value=value)
                return (optax.apply_updates(params, updates), state), value

            steps = pair.step + jnp.arange(self.unroll, dtype=jnp.int32)
            (params, state), values = jax.lax.scan(step, (params, state), steps)
            progress = self.progress(values, pair.first)
            share = (steps + 1).astype(progress.dtype) / pair.horizon.astype(
                progress.dtype
            )
            return params, state, jnp.mean(self.emphasis(share) * progress)

        noises = jnp.stack([noise, -noise])
        params, state, losses = jax.vmap(run)(noises, pair.params, pair.opt_state)
        gradient = drift * (losses[0] - losses[1]) / (2 * self.sigma**2)
        moved = replace(
            pair,
            params=params,
            opt_state=state,
            drift=drift,
            step=pair.step + self.unroll,
        )
        return moved, gradient, jnp.mean(losses)

    def progress(
        self, values: Float[Array, " steps"], first: Scalar
    ) -> Float[Array, " steps"]:
        """The logarithms of losses, from that of the first."""
        tiny = jnp.finfo(values.dtype).tiny
        progress = jnp.log(jnp.maximum(values, tiny)) - first
        # Also for NaN.
        return jnp.where(progress < WORST, progress, WORST)

    def emphasis(self, share: Float[Array, " steps"]) -> Float[Array, " steps"]:
        """What a step counts, by the share of the run that is over; 1 in the mean."""
        return (1 + self.late) * jnp.minimum(share, 1) ** self.late

    def step(self, state: MetaState) -> tuple[MetaState, Scalar]:
        """The state after one step of the outer optimizer, and the mean loss."""
        flat, unravel = ravel_pytree(state.weights)
        pairs, gradients, losses = [], [], []
        for i, (task, mine) in enumerate(zip(self.tasks, state.pairs, strict=True)):
            key = jr.fold_in(jr.fold_in(state.key, state.step), i)
            advance = lambda p, k, task=task: self.advance(task, state.weights, p, k)
            moved, terms, loss = jax.vmap(advance)(mine, jr.split(key, self.num_pairs))
            pairs.append(moved)
            gradients.append(jnp.mean(terms, 0))
            losses.append(jnp.mean(loss))
        gradient = unravel(jnp.mean(jnp.stack(gradients), 0).astype(flat.dtype))
        # Optax is not strict about dtypes and ranks.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, opt_state = self.optim.update(gradient, state.opt_state)
            old: Any = state.weights
            weights: Any = optax.apply_updates(old, updates)
        after = MetaState(weights, opt_state, tuple(pairs), state.step + 1, state.key)
        return after, jnp.mean(jnp.stack(losses))


def meta_train(
    tasks: Sequence[Task],
    *,
    steps: int,
    unroll: int = 20,
    key: Key,
    weights: Weights | None = None,
    **options: Any,
) -> Weights:
    """Trains the weights of [`MetaOptimizer`][] for your own tasks.

    **Arguments:**

    - `tasks`: families of things to train; each counts as much as any other.
    - `steps`: of the outer optimizer.
    - `unroll`: steps of training between two of them.
    - `weights`: to begin with; [`random_weights`][] by default, which take the steps of
        Adam.
    - `options`: those of [`PES`][]: `horizon`, the steps of the longest run (1000);
        `num_pairs`, runs at a time and task, in opposite pairs (8); `sigma`, of the
        noise (0.02); `learning_rate`, of the outer Adam, or its schedule (1e-3);
        `inner_rate`, that of `MetaOptimizer` (1e-3); `late`, how much the end of a run
        counts (0: no more than its beginning).

    **Raises:** `ValueError` and `TypeError` for what is out of range.
    """
    check_count("steps", steps)
    pes = PES(tuple(tasks), unroll=unroll, **options)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: pes.step(s), s, length=steps))
    state, _ = run(pes.init(key, weights))
    return state.weights
