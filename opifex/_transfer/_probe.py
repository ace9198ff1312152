"""Finds out what the arrays of an optimizer's state depend on, by trying."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, PyTree


class Origin(NamedTuple):
    """What gave an axis of an array its length."""

    paths: tuple[str, ...]  # of one parameter; of several that were joined end to end
    axis: int | None  # of that parameter; none if they were flattened


Origins = dict[str, tuple[Origin | None, ...]]


def find_origins(optim: optax.GradientTransformation, params: PyTree) -> Origins:
    """For each array of the optimizer's state, which axis of which parameter each of
    its axes is: the one which makes it longer when it becomes longer itself.

    Only shapes are computed. Raises `ValueError` if an axis cannot be told.
    """
    shapes = {k: x.shape for k, x in _shapes(params).items()}
    base = {k: x.shape for k, x in _state_shapes(optim, params).items()}
    grown: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
    for path, shape in shapes.items():
        for axis in range(len(shape)):
            longer = _state_shapes(optim, _longer(params, path, axis))
            for name, axes in base.items():
                new = longer[name].shape if name in longer else ()
                if len(new) != len(axes):
                    raise ValueError(
                        f"`opt_state{name}` has another structure when `{path}` grows, "
                        "so it cannot be carried. Use another optimizer, or let its "
                        "structure not depend on sizes."
                    )
                for i, (n, old) in enumerate(zip(new, axes, strict=True)):
                    if n != old:
                        grown.setdefault((name, i), []).append((path, axis, n - old))
    return {
        name: tuple(
            _origin(name, i, n, grown.get((name, i), []), shapes)
            for i, n in enumerate(axes)
        )
        for name, axes in base.items()
    }


def _origin(name, i, length, grown, shapes) -> Origin | None:
    if not grown:
        return None
    size = lambda path: int(np.prod(shapes[path], dtype=int))
    if len(grown) == 1:
        path, axis, more = grown[0]
        if more == 1 and shapes[path][axis] == length:
            return Origin((path,), axis)
    involved = {path for path, _, _ in grown}
    for chosen in (tuple(shapes), tuple(p for p in shapes if p in involved)):
        joined = sum(map(size, chosen)) == length and involved <= set(chosen)
        if joined and all(
            more == size(path) // shapes[path][axis] for path, axis, more in grown
        ):
            return Origin(chosen, None)
    raise ValueError(
        f"Axis {i} of `opt_state{name}`, of length {length}, belongs to no single axis "
        f"of a parameter (it depends on {sorted(involved)[:4]}), so it cannot be "
        "carried. Use another optimizer, or give a rule for it in `rules`."
    )


def _shapes(tree: PyTree) -> dict[str, Any]:
    return {jtu.keystr(path): x for path, x in jtu.tree_leaves_with_path(tree)}


def _state_shapes(optim, params: PyTree) -> dict[str, Any]:
    return _shapes(jax.eval_shape(optim.init, params))


def _longer(params: PyTree, path: str, axis: int) -> PyTree:
    def grow(where, x):
        more = jtu.keystr(where) == path
        shape = tuple(n + (more and i == axis) for i, n in enumerate(x.shape))
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jtu.tree_map_with_path(grow, params)


def probe_kinds(
    optim: optax.GradientTransformation, params: PyTree, wanted: Origins
) -> dict[str, str | None]:
    """The kinds of some arrays of the state: how they change when gradients do, over
    three steps at random parameters.

    Of an array that has the axes of a parameter, every other gradient is doubled, and
    the entries are compared with the rest: what all gradients share, such as the
    clipping of their norm, cancels. Of others, all gradients are doubled. What does not
    change is a `"copy"`; what doubles, a `"gradient"`; what becomes four times as
    large, a `"square"`. What begins as the parameters is a `"value"`, and orthonormal
    columns are a `"basis"`. `None` for what fits none of these, or stays zero.
    """
    # Nothing of this depends on what is being traced.
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        with jax.numpy_rank_promotion("allow"):
            params = _random_like(params, 0)
            start = _leaves(optim.init(params))
            other = _leaves(optim.init(jtu.tree_map(lambda x: 2 * x, params)))
            step = _compiled_step(optim)
            plain, half, full = (
                _leaves(_after(step, optim, params, which)) for which in _FACTORS
            )
    shapes = {path: x.shape for path, x in _shapes(params).items()}
    kinds: dict[str, str | None] = {}
    for name in wanted:
        if np.any(start[name]) and not np.array_equal(start[name], other[name]):
            same = _near(other[name], 2 * start[name])
            kinds[name] = "value" if same else None
        elif _is_basis(plain[name], wanted[name]):
            kinds[name] = "basis"
    bases = {axis for n, k in kinds.items() if k == "basis" for axis in wanted[n]}
    for name in wanted.keys() - kinds.keys():
        shape = _elementwise(wanted[name], shapes)
        if shape is None or bases & set(wanted[name]):
            kinds[name] = _kind(full[name], plain[name], np.ones((), bool))
        else:
            kinds[name] = _kind(half[name], plain[name], _every_other(shape))
    return kinds


def _every_other(shape: tuple[int, ...]) -> np.ndarray:
    return (np.arange(int(np.prod(shape, dtype=int))) % 2 == 1).reshape(shape)


# By what a gradient of some shape is multiplied.
_FACTORS = (
    lambda shape: np.ones(shape),
    lambda shape: 1.0 + _every_other(shape),
    lambda shape: np.full(shape, 2.0),
)


def _elementwise(axes, shapes) -> tuple[int, ...] | None:
    """The shape of the parameter whose axes are, in order, the last of an array."""
    paths = {axis.paths for axis in axes if axis is not None and axis.axis is not None}
    if len(paths) != 1:
        return None
    shape = shapes[next(iter(paths))[0]]
    last = axes[len(axes) - len(shape) :]
    in_order = [axis.axis if axis is not None else None for axis in last]
    return shape if in_order == list(range(len(shape))) else None


def _is_basis(x: np.ndarray, axes) -> bool:
    if x.ndim != 2 or x.shape[0] != x.shape[1] or axes[0] != axes[1]:
        return False
    return bool(np.allclose(x.T @ x, np.eye(len(x)), atol=1e-4))


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    largest = np.max(np.abs(other), initial=0.0)
    return np.allclose(one, other, rtol=1e-4, atol=1e-6 * largest)


def _kind(changed: np.ndarray, plain: np.ndarray, doubled: np.ndarray) -> str | None:
    if not np.issubdtype(plain.dtype, np.inexact):
        return "copy" if np.array_equal(changed, plain) else None
    doubled = np.broadcast_to(doubled, plain.shape)
    used = plain != 0
    if not used.any() or np.any(changed[~used]):
        return None
    ratio = changed[used] / plain[used]
    ours, rest = ratio[doubled[used]], ratio[~doubled[used]]
    base = rest[0] if len(rest) else 1.0
    if not len(ours) or not _near(rest, np.full_like(rest, base)):
        return None
    kinds = {1: "copy", 2: "gradient", 4: "square"}
    return next(
        (k for f, k in kinds.items() if _near(ours, np.full_like(ours, f * base))), None
    )


def _leaves(tree: PyTree) -> dict[str, np.ndarray]:
    return {
        jtu.keystr(path): np.asarray(x)
        for path, x in jtu.tree_leaves_with_path(tree)
        if not jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key)
    }


def _random_like(tree: PyTree, seed: int) -> PyTree:
    draw = np.random.default_rng(seed).normal
    return jtu.tree_map(lambda x: jnp.asarray(draw(size=x.shape), x.dtype), tree)


def _after(step, optim, params: PyTree, factor) -> PyTree:
    state = optim.init(params)
    for seed in (1, 2, 3):
        grads = jtu.tree_map(
            lambda g: g * jnp.asarray(factor(g.shape), g.dtype),
            _random_like(params, seed),
        )
        state = step(grads, state, params)
    return state


def _compiled_step(optim):
    update = optax.with_extra_args_support(optim).update

    @jax.jit
    def step(grads, state, params):
        value_fn = lambda p: _dot(grads, p)
        extra = {"value": value_fn(params), "grad": grads, "value_fn": value_fn}
        return update(grads, state, params, **extra)[1]

    return step


def _dot(one: PyTree, other: PyTree) -> Array:
    parts = jtu.tree_map(lambda a, b: jnp.sum(jnp.real(jnp.conj(a) * b)), one, other)
    return sum(jtu.tree_leaves(parts), jnp.zeros(()))
