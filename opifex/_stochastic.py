import warnings

import jax
import jax.random as jr
import jax.tree_util as jtu
from jax.interpreters import partial_eval

from ._objective import checked_terms
from ._optimizer.searches import needs_one_loss
from ._problem.base import AbstractProblem
from ._sampler.base import AbstractSampler
from ._sampler.minibatch import Minibatch
from ._state import TrainingState


def warn_if_changing(
    problem: AbstractProblem, sampler: AbstractSampler, state: TrainingState
) -> None:
    """Warns if the loss is another one at every step, and the optimizer minds."""
    if not needs_one_loss(state.opt_state):
        return
    causes = what_changes(problem, sampler, state)
    if causes:
        warnings.warn(
            "`optim` searches along a line and compares one step with the next, but "
            f"the loss is another one at every step: {' and '.join(causes)}. Use "
            "points that stay for a chunk, the full batch, or a first-order optimizer "
            "such as `optax.adam(1e-3)`.",
            stacklevel=4,
        )


def what_changes(
    problem: AbstractProblem, sampler: AbstractSampler, state: TrainingState
) -> list[str]:
    """Why the loss of two steps differs though the model and the state of the sampler
    are the same. Nothing is computed for it."""

    sampler = _in_order(sampler)

    def terms(batch_key, step, loss_key):
        batch = sampler.batch(state.sampler_state, batch_key, step)
        return checked_terms(problem, state.model, batch, loss_key)[0]

    jaxpr = jax.make_jaxpr(terms)(jr.key(0), state.step, jr.key(0)).jaxpr
    # What is left of the inputs when all is taken out that no term depends on.
    used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    of_batch, of_step, of_loss = used
    causes = []
    if of_batch or of_step:
        causes.append(f"`{type(sampler).__name__}` hands out another batch")
    if of_loss:
        causes.append(f"`{type(problem).__name__}` draws random numbers")
    return causes


def _in_order(sampler: AbstractSampler) -> AbstractSampler:
    """The same, but for the order of the full data, which is no matter to a mean."""
    is_full = lambda x: isinstance(x, Minibatch) and x.steps_per_epoch == 1

    def in_order(x):
        if not is_full(x):
            return x
        return Minibatch(x.inputs, x.targets, x.batch_size, shuffle=False)

    return jtu.tree_map(in_order, sampler, is_leaf=is_full)
