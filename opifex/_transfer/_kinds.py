"""What an array of an optimizer's state is, as far as its transfer is concerned."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .._misc import unknown_name
from .._optimizer.nncg import NNCGState
from .._optimizer.soap import SOAPState
from .._optimizer.ssbroyden import QuasiNewtonState
from ._axis import AxisMap


KINDS = (
    "keep",  # the same, whatever the size of the model
    "value",  # of the parameters, or a difference of such values
    "copy",  # what does not change with the size of the gradient
    "gradient",  # of degree one in the gradient
    "square",  # of degree two in the gradient
    "inverse",  # maps gradients to values: an inverse Hessian
    "basis",  # orthonormal vectors, the columns of a matrix, along an axis
)

# Of which trying tells nothing: they compare one step with the next, or turn it.
SECOND_ORDER: dict[type, dict[str, str]] = {
    optax.ScaleByLBFGSState: {
        "params": "value",
        "updates": "gradient",
        "diff_params_memory": "value",
        "diff_updates_memory": "gradient",
    },
    optax.ScaleByZoomLinesearchState: {"grad": "gradient"},
    optax.ScaleByBacktrackingLinesearchState: {"grad": "gradient"},
    NNCGState: {"vectors": "value", "direction": "value"},
    SOAPState: {
        "momentum": "gradient",
        "second": "square",
        "factors": "square",
        "bases": "basis",
    },
    QuasiNewtonState: {
        "inverse": "inverse",
        "point": "value",
        "grad": "gradient",
        "direction": "value",
    },
}

# What they usually are, where trying told nothing because they were not in use. (They
# need not be: behind a transformation that normalises, all of these are of degree 0.)
_USUAL: dict[type, dict[str, str]] = {
    optax.ScaleByAdamState: {"mu": "gradient", "nu": "square"},
    optax.ScaleByAmsgradState: {"mu": "gradient", "nu": "square", "nu_max": "square"},
    optax.ScaleByBeliefState: {"mu": "gradient", "nu": "square"},
    optax.ScaleByRmsState: {"nu": "square"},
    optax.ScaleByRStdDevState: {"mu": "gradient", "nu": "square"},
    optax.ScaleByRssState: {"sum_of_squares": "square"},
    optax.ScaleByLionState: {"mu": "gradient"},
    optax.ScaleByAdaDeltaState: {"e_g": "square", "e_x": "copy"},
    optax.MultiStepsState: {"acc_grads": "gradient"},
    optax.TraceState: {"trace": "gradient"},
    optax.EmaState: {"ema": "gradient"},
}


def named_kinds(
    state: PyTree, table: Mapping[type, dict[str, str]] = _USUAL, path: tuple = ()
) -> Iterator[tuple[str, str]]:
    """The kinds of the arrays in the states that `table` knows, by path."""
    is_known = lambda x: type(x) in table
    for inner, node in jtu.tree_leaves_with_path(state, is_leaf=is_known):
        if not is_known(node):
            continue
        kinds = table[type(node)]
        for name in _field_names(node):
            part = getattr(node, name)
            here = (*path, *inner, jtu.GetAttrKey(name))
            if name not in kinds:
                yield from named_kinds(part, table, here)
                continue
            for rest, _ in jtu.tree_leaves_with_path(part):
                yield jtu.keystr((*here, *rest)), kinds[name]


def _field_names(node: Any) -> list[str]:
    if dataclasses.is_dataclass(node):
        return [field.name for field in dataclasses.fields(node)]
    return list(node._fields)


def check_kind(kind: Any) -> None:
    """Raises unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(unknown_name("rules", str(kind), KINDS))


def scale_of(
    kind: str, repeated: int
) -> Callable[[AxisMap], Float[np.ndarray, " fine"]]:
    """By what the copies along an axis are multiplied.

    `repeated` counts the axes of the array that are this axis of the parameter: two for
    the factors of a Kronecker product.
    """
    if kind in ("value", "inverse"):
        return lambda m: m.value
    degree = {"copy": 0, "gradient": 1, "square": 2}[kind]
    power = degree / repeated
    return lambda m: np.where(m.share == 0, 0.0, m.grad**power)


Rule = tuple[str | Callable[[str, Array], bool], str]
