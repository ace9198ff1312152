from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax

from .._custom_types import Count
from .._misc import check_count
from .base import check_optimizer


class PhasesState(eqx.Module):
    """How many steps were taken, and the state of each phase's optimizer."""

    count: Count
    inner: tuple[Any, ...]


def phases(
    *plan: Any, total_steps: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """One optimizer after another, behind one state.

    `phases((optax.adam(1e-3), 2000), (ssbroyden(), 20000))` takes 2000 steps of Adam,
    then SSBroyden. A phase begins with a fresh state at the parameters it finds; a run
    resumes in the middle of any of them. Steps that a recovery does not keep are not
    counted.

    **Arguments:**

    - `plan`: pairs of an optimizer and its number of steps, in order, or one list of
        them. The last optimizer goes on for as long as it is asked to.
    - `total_steps`: if given, what the numbers of steps must sum to.

    **Raises:** `ValueError` for an empty plan, numbers that are not positive, and such
    that do not sum to `total_steps`; `TypeError` for what is no optimizer.
    """
    if len(plan) == 1 and isinstance(plan[0], list):
        plan = tuple(plan[0])
    if not plan:
        raise ValueError("`plan` is empty; give at least one (optimizer, steps) pair.")
    for pair in plan:
        # An optimizer is a pair itself, of functions.
        alone = isinstance(pair, optax.GradientTransformation)
        if alone or not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"`plan` must consist of (optimizer, steps) pairs, got {pair!r}. Write "
                "for instance `phases((optax.adam(1e-3), 500), (ssbroyden(), 1500))`."
            )
        check_optimizer("plan", pair[0])
        check_count("plan", pair[1])
    _check_total(total_steps, [steps for _, steps in plan])
    optims = [optax.with_extra_args_support(optim) for optim, _ in plan]
    starts = [sum(steps for _, steps in plan[:i]) for i in range(len(plan))]

    def init(params) -> Any:
        inner = tuple(optim.init(params) for optim in optims)
        return PhasesState(jnp.zeros((), jnp.int32), inner)

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        def phase(i):
            def run(inner):
                mine = jax.lax.cond(
                    state.count == starts[i],
                    lambda: _like(optims[i].init(params), inner[i]),
                    lambda: inner[i],
                )
                new, mine = optims[i].update(updates, mine, params, **extra)
                rest = (*inner[:i], _like(mine, inner[i]), *inner[i + 1 :])
                return _like(new, updates), rest

            return run

        current = jnp.sum(state.count >= jnp.array(starts, jnp.int32)) - 1
        branches = [phase(i) for i in range(len(plan))]
        new, inner = jax.lax.switch(current, branches, state.inner)
        return new, PhasesState(state.count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_total(total_steps: int | None, steps: list[int]) -> None:
    if total_steps is None:
        return
    check_count("total_steps", total_steps)
    if sum(steps) != total_steps:
        raise ValueError(
            f"`plan` has phases of {steps} steps, which sum to {sum(steps)}, but "
            f"`total_steps` is {total_steps}. Change one of them."
        )


def _like(tree, target):
    # The branches must agree to the dtype, and optax is free with it.
    return jtu.tree_map(lambda x, t: jnp.asarray(x, t.dtype), tree, target)
