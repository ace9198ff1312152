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
    *plan: tuple[optax.GradientTransformation, int],
) -> optax.GradientTransformationExtraArgs:
    """One optimizer after another, behind one state.

    `phases((optax.adam(1e-3), 2000), (ssbroyden(), 20000))` takes 2000 steps of Adam,
    then SSBroyden. A phase begins with a fresh state at the parameters it finds; a run
    resumes in the middle of any of them.

    **Arguments:**

    - `plan`: pairs of an optimizer and its number of steps, in order. The last
        optimizer goes on for as long as it is asked to.
    """
    if not plan:
        raise ValueError("`plan` is empty; give at least one (optimizer, steps) pair.")
    for optim, steps in plan:
        check_optimizer("plan", optim)
        check_count("plan", steps)
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


def _like(tree, target):
    # The branches must agree to the dtype, and optax is free with it.
    return jtu.tree_map(lambda x, t: jnp.asarray(x, t.dtype), tree, target)
