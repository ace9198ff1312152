"""Carries the state of an optimizer between two sizes of a model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, PyTree

from .._custom_types import OptState
from ._axis import AxisMap, flat, identity, is_new, prolongate_array, restrict_array
from ._kinds import check_kind, named_kinds, Rule, scale_of, SECOND_ORDER
from ._matrices import (
    complemented,
    completed,
    restricted_basis,
    restricted_inverse,
    rotated,
)
from ._probe import find_origins, Origin, Origins, probe_kinds
from .base import arrays_of, Plan


class _Move(NamedTuple):
    """One array of the state: from which it comes, and by which rule."""

    coarse: str | None
    kind: str
    axes: tuple[AxisMap, ...]
    repeated: int  # how many of its axes are the same axis of a parameter
    siblings: str  # what its path has in common with those of its like


def prolongate_opt_state(
    optim: optax.GradientTransformation,
    plan: Plan,
    params: tuple[PyTree, PyTree],
    opt_state: OptState,
    rules: Sequence[Rule] = (),
) -> OptState:
    """The state of the optimizer of the fine model, made from that of the coarse one.

    **Arguments:**

    - `plan`: where the arrays of the fine model come from.
    - `params`: the trained arrays (or their shapes) of the coarse and the fine model.
    - `opt_state`: of the coarse model.
    - `rules`: see [`prolongate`][].
    """
    moves = _moves(optim, plan, params[1], opt_state, rules)
    have = arrays_of(jtu.tree_map(jnp.asarray, opt_state))
    _check_same(have, {m.coarse for m in moves.values()} - {None})

    def grow(path, like):
        move = moves[jtu.keystr(path)]
        if move.coarse is None:
            return _begun(move, like, have)
        new = _grown(have[move.coarse], move)
        _check_shape(jtu.keystr(path), new, like)
        return new

    return jtu.tree_map_with_path(grow, jax.eval_shape(optim.init, params[1]))


def restrict_opt_state(
    optim: optax.GradientTransformation,
    plan: Plan,
    params: tuple[PyTree, PyTree],
    opt_state: OptState,
    rules: Sequence[Rule] = (),
) -> OptState:
    """The inverse of [`prolongate_opt_state`][]; `opt_state` is of the fine model."""
    like = jax.eval_shape(optim.init, params[0])
    moves = _moves(optim, plan, params[1], like, rules)
    have = arrays_of(jtu.tree_map(jnp.asarray, opt_state))
    _check_same(have, moves)
    back = {m.coarse: (name, m) for name, m in moves.items() if m.coarse is not None}

    def shrink(path, like):
        name, move = back[jtu.keystr(path)]
        new = _shrunk(have[name], move)
        _check_shape(jtu.keystr(path), new, like)
        return new

    return jtu.tree_map_with_path(shrink, like)


def _moves(optim, plan: Plan, fine: PyTree, coarse_state: PyTree, rules):
    origins = find_origins(optim, fine)
    names = arrays_of(jax.eval_shape(lambda x: x, coarse_state))
    kinds = _kinds(optim, plan, fine, origins, rules)
    bases = {
        axis
        for name, kind in kinds.items()
        if kind == "basis"
        for axis in origins[name]
        if axis is not None
    }
    arrays = arrays_of(jax.eval_shape(optim.init, fine))
    trained = sorted(arrays_of(fine), key=len, reverse=True)
    moves = {}
    for name, axes in origins.items():
        kind = kinds[name]
        coarse, siblings = _coarse_name(name, plan, trained)
        lengths = arrays[name].shape
        named = [axis for axis in axes if axis is not None]
        repeated = max([named.count(axis) for axis in named], default=1)
        within = bases if kind == "square" and repeated == 1 else set()
        maps = tuple(
            _map(axis, n, plan, within) for axis, n in zip(axes, lengths, strict=True)
        )
        if coarse is not None and coarse not in names:
            raise _other_structure(coarse)
        moves[name] = _Move(coarse, kind, maps, repeated, siblings)
    return moves


def _kinds(optim, plan, fine, origins: Origins, rules) -> dict[str, str]:
    """The kind of every array: by the rules given, by trying, by name."""
    like = jax.eval_shape(optim.init, fine)
    arrays = arrays_of(like)
    kinds: dict[str, str | None] = dict.fromkeys(origins, "keep")
    changed = {n for n, axes in origins.items() if _changes(axes, plan)}
    named, second_order = dict(named_kinds(like)), dict(named_kinds(like, SECOND_ORDER))
    if second_order:  # trying a line search takes long, and tells nothing of its phase
        second_order |= named
    for name in changed:
        kinds[name] = _ruled(name, arrays[name], rules) or second_order.get(name)
    unknown = {name: origins[name] for name in changed if kinds[name] is None}
    if unknown:
        kinds |= probe_kinds(optim, fine, unknown)
    for name in unknown:
        # What was not in use, as in a phase that is yet to come.
        kinds[name] = kinds[name] or named.get(name)
    for name, kind in kinds.items():
        if kind is None:
            raise ValueError(
                f"`opt_state{name}` of shape {arrays[name].shape} grows with the "
                "model, and no rule says how: it has no known name, and is not of "
                "degree zero, one or two in the gradient. Give one in `rules`, such as "
                f'`rules=[({name!r}, "square")]`; see `KINDS`.'
            )
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _changes(axes: tuple[Origin | None, ...], plan: Plan) -> bool:
    paths = [path for axis in axes if axis is not None for path in axis.paths]
    sources = [plan[path] for path in paths]
    return any(
        s.path is None or not all(m.is_identity for m in s.axes) for s in sources
    )


def _ruled(name: str, array: Any, rules: Sequence[Rule]) -> str | None:
    for test, kind in rules:
        check_kind(kind)
        if isinstance(test, str):
            fits = test == name or re.search(test, name) is not None
        else:
            fits = test(name, array)
        if fits:
            return kind
    return None


def _coarse_name(name: str, plan: Plan, trained: list[str]) -> tuple[str | None, str]:
    """The path of the array in the state of the coarse model, if it is there, and what
    comes before that of the parameter."""
    own = next((p for p in trained if name.endswith(p)), None)
    if own is None:
        return name, name
    before = name.removesuffix(own)
    source = plan[own].path
    return (None if source is None else before + source), before


def _map(axis: Origin | None, length: int, plan: Plan, bases: set) -> AxisMap:
    if axis is None:
        return identity(length)
    if axis.axis is None:
        sources = [plan[path] for path in axis.paths]
        return flat([(s.axes, s.path is not None) for s in sources])
    m = plan[axis.paths[0]].axes[axis.axis]
    return rotated(m) if axis in bases else m


def _grown(x: Array, move: _Move) -> Array:
    if move.kind == "keep":
        return x
    if move.kind == "inverse":
        return complemented(x, move.axes[-1])
    if move.kind == "basis":
        return completed(x, move.axes[-1])
    grown = prolongate_array(x, move.axes, scale_of(move.kind, move.repeated))
    new = is_new(move.axes, grown.shape)
    if move.kind in ("value", "gradient") or not new.any():
        return grown
    if move.repeated == 1:
        return jnp.where(new, jnp.mean(x).astype(x.dtype), grown)
    middle = jnp.mean(jnp.diagonal(x, axis1=-2, axis2=-1)).astype(x.dtype)
    eye = jnp.broadcast_to(jnp.eye(grown.shape[-1], dtype=x.dtype), grown.shape)
    return jnp.where(new, middle * eye, grown)


def _shrunk(x: Array, move: _Move) -> Array:
    if move.kind == "keep":
        return x
    if move.kind == "inverse":
        return restricted_inverse(x, move.axes[-1])
    if move.kind == "basis":
        return restricted_basis(x, move.axes[-1])
    return restrict_array(x, move.axes, scale_of(move.kind, move.repeated))


def _begun(move: _Move, like: Any, have: Mapping[str, Array]) -> Array:
    """Of a parameter that is new: zero, or the mean over those that are not."""
    if move.kind in ("value", "gradient"):
        return jnp.zeros(like.shape, like.dtype)
    if move.kind == "basis":
        return jnp.eye(like.shape[-1], dtype=like.dtype)
    others = [x for name, x in have.items() if name.startswith(move.siblings)]
    alike = [x for x in others if x.dtype == like.dtype and x.size]
    total = sum((jnp.sum(x) for x in alike), jnp.zeros((), like.dtype))
    mean = total / max(sum(x.size for x in alike), 1)
    return jnp.full(like.shape, mean.astype(like.dtype))


def _check_same(have: Mapping[str, Any], wanted) -> None:
    for name in sorted(set(have) ^ set(wanted)):
        raise _other_structure(name)


def _other_structure(name: str) -> ValueError:
    return ValueError(
        f"`opt_state{name}` is in the state of one model and not in that of the other, "
        "so it cannot be carried. Use the same kind of optimizer for both."
    )


def _check_shape(name: str, new: Array, like: Any) -> None:
    if new.shape != like.shape:
        raise ValueError(
            f"`opt_state{name}` came out with shape {new.shape} and should have "
            f"{like.shape}. Use the same optimizer for both models, or give another "
            "kind for it in `rules`."
        )
