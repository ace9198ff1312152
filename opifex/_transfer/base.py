import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .._custom_types import Model
from ._alike import check_alike
from ._axis import AxisMap, identity, prolongate_array, restrict_array


class AbstractTransfer(eqx.Module):
    """Carries a model, and all that was learned with it, between two sizes of one
    architecture.

    It says only where each entry of each array of the larger model comes from. All else
    follows: models are carried so that `fine(x) == coarse(x)` to rounding, the state of
    the optimizer so that it is what the fine model would have led to, and restriction
    is the exact inverse of prolongation.
    """

    @abc.abstractmethod
    def axes(
        self, path: str, coarse: tuple[int, ...], fine: tuple[int, ...]
    ) -> tuple[AxisMap | None, ...]:
        """How each axis of one array grows; `None` for one that this transfer does not
        know how to grow.

        **Arguments:**

        - `path`: of the array in the fine model, as from `jax.tree_util.keystr`.
        - `coarse`, `fine`: its shapes, of the same length.
        """

    @abc.abstractmethod
    def pairs(self, coarse: PyTree, fine: PyTree) -> Mapping[str, "str | Array"]:
        """For arrays of `fine` that have another path in `coarse`, that path; for those
        that are not there at all, the values they begin with.

        Raises if the two models do not fit each other.
        """

    @abc.abstractmethod
    def step_ratio(self, coarse: PyTree, fine: PyTree) -> float:
        """By which the steps of the fine model should be shorter."""


class Source(NamedTuple):
    """Where an array of the fine model comes from."""

    path: str | None
    axes: tuple[AxisMap, ...]
    start: Array | None


Plan = dict[str, Source]


def arrays_of(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree (or their shapes), by path."""
    leaves = jtu.tree_leaves_with_path(tree)
    return {jtu.keystr(path): x for path, x in leaves if is_shaped(x)}


def is_shaped(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def make_plan(transfer: AbstractTransfer, coarse: PyTree, fine: PyTree) -> Plan:
    """For every array of `fine`, where it comes from. Only shapes are looked at.

    **Raises:** `ValueError`, naming the array, both sizes and the remedy.
    """
    moved = transfer.pairs(coarse, fine)
    check_alike(coarse, fine, exempt=bool(moved))
    have, want = arrays_of(coarse), arrays_of(fine)
    paths = {path: moved.get(path, path) for path in want}
    taken = {source for source in paths.values() if isinstance(source, str)}
    missing, left = sorted(taken - set(have)), sorted(set(have) - taken)
    if missing or left:
        raise ValueError(
            "The two models do not have the same layers: "
            f"{_listed(missing)} in the fine one only, {_listed(left)} in the coarse "
            "one only. Give both the same depth, or add `Deepen()` to the transfer."
        )
    return {
        path: Source(None, tuple(map(identity, want[path].shape)), source)
        if not isinstance(source, str)
        else Source(source, _axes(transfer, path, have[source], want[path]), None)
        for path, source in paths.items()
    }


def _axes(transfer, path: str, coarse: Any, fine: Any) -> tuple[AxisMap, ...]:
    old, new = tuple(coarse.shape), tuple(fine.shape)
    if coarse.dtype != fine.dtype:
        raise ValueError(
            f"`{path}` is {coarse.dtype} in the coarse model and {fine.dtype} in the "
            "fine one. Make both with the same `dtype`."
        )
    if len(old) != len(new) or any(o > n for o, n in zip(old, new, strict=True)):
        raise ValueError(
            f"`{path}` has shape {old} in the coarse model and {new} in the fine one. "
            "The coarse model must be the smaller one, in every array: exchange the "
            "two, use `restrict`, or change the sizes."
        )
    if old == new:
        return tuple(map(identity, new))
    maps = transfer.axes(path, old, new)
    axes = tuple(
        identity(n) if m is None and o == n else m
        for m, o, n in zip(maps, old, new, strict=True)
    )
    for i, (m, o, n) in enumerate(zip(axes, old, new, strict=True)):
        if m is None or (len(m.first), len(m.index)) != (o, n):
            raise ValueError(
                f"`{path}` has shape {old} in the coarse model and {new} in the fine "
                f"one, and `transfer` ({type(transfer).__name__}) does not grow axis "
                f"{i} of it. Give both models the same size there, or combine "
                "transfers with `Chain`."
            )
    return tuple(m for m in axes if m is not None)


def _listed(paths: Sequence[str]) -> str:
    return "nothing" if not paths else ", ".join(f"`{path}`" for path in paths[:4])


def by_value(m: AxisMap):
    return m.value


def prolongate_model(transfer: AbstractTransfer, coarse: Model, fine: Model) -> Model:
    """A model of the size of `fine` that is the function `coarse`.

    **Arguments:**

    - `transfer`: how to grow it.
    - `coarse`: the model whose function is wanted.
    - `fine`: a model of the same architecture, larger. Only its shapes matter.

    **Raises:** `ValueError` if the two do not fit.
    """
    plan, have = make_plan(transfer, coarse, fine), arrays_of(coarse)

    def grow(path: str, leaf: Any) -> Array:
        source = plan[path]
        if source.path is None:
            return jnp.asarray(source.start, leaf.dtype)
        return prolongate_array(have[source.path], source.axes, by_value)

    return _map_arrays(grow, fine)


def restrict_model(transfer: AbstractTransfer, fine: Model, coarse: Model) -> Model:
    """A model of the size of `coarse` that comes close to `fine`, and is the one that
    `fine` was prolongated from, if it was.

    **Arguments:**

    - `transfer`: the one that prolongates.
    - `fine`: the model to restrict.
    - `coarse`: a model of the same architecture, smaller. Only its shapes matter.
    """
    plan, have = make_plan(transfer, coarse, fine), arrays_of(fine)
    back = {s.path: (path, s.axes) for path, s in plan.items() if s.path is not None}

    def shrink(path: str, leaf: Any) -> Array:
        del leaf
        name, axes = back[path]
        return restrict_array(have[name], axes, by_value)

    return _map_arrays(shrink, coarse)


def _map_arrays(function: Callable[[str, Any], Array], tree: PyTree) -> PyTree:
    def call(path, leaf):
        return function(jtu.keystr(path), leaf) if is_shaped(leaf) else leaf

    return jtu.tree_map_with_path(call, tree)
