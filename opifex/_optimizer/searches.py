"""Which optimizers find the length of their steps by themselves."""

from typing import Any

import jax.tree_util as jtu
import optax
from jaxtyping import PyTree

from .levenberg_marquardt import LevenbergMarquardtState
from .natural_gradient import ENGDState
from .nncg import NNCGState
from .ssbroyden import QuasiNewtonState


# They compare gradients of one step with those of the next, or finish a descent.
_OF_ONE_LOSS = (
    optax.ScaleByLBFGSState,
    optax.ScaleByZoomLinesearchState,
    optax.ScaleByBacktrackingLinesearchState,
    NNCGState,
    QuasiNewtonState,
)
# The others look at one step alone.
_SEARCHES = (*_OF_ONE_LOSS, ENGDState, LevenbergMarquardtState)


def holds_line_search(state: PyTree) -> bool:
    """Whether the optimizer of this state chooses the length of each step by itself."""
    return _holds(state, _SEARCHES)


def needs_one_loss(state: PyTree) -> bool:
    """Whether the optimizer of this state relies on a loss that is still the same at
    the next step."""
    return _holds(state, _OF_ONE_LOSS)


def _holds(state: PyTree, kinds: tuple[Any, ...]) -> bool:
    is_kind = lambda x: isinstance(x, kinds)
    return any(map(is_kind, jtu.tree_leaves(state, is_leaf=is_kind)))
