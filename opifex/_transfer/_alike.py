import dataclasses
import functools
import types
from collections.abc import Iterator
from typing import Any

import equinox as eqx
from jaxtyping import PyTree


def functions_of(tree: PyTree) -> dict[str, Any]:
    """The functions inside a model, static or not, by path: its activations."""
    return dict(_functions(tree, ""))


def _functions(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, eqx.Module):
        for field in dataclasses.fields(node):
            value = getattr(node, field.name, None)
            yield from _functions(value, f"{path}.{field.name}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _functions(value, f"{path}[{i}]")
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _functions(value, f"{path}[{name!r}]")
    elif callable(node):
        yield path, node


def check_alike(coarse: PyTree, fine: PyTree, *, exempt: bool) -> None:
    """Raises if two models of one architecture have different activations.

    `exempt` allows functions that only one of them has.
    """
    have, want = functions_of(coarse), functions_of(fine)
    for path in have.keys() & want.keys() if exempt else have.keys() | want.keys():
        one, other = have.get(path), want.get(path)
        if not _same(one, other):
            raise ValueError(
                f"`{path}` is {_name(one)} in the coarse model and {_name(other)} in "
                "the fine one, so they cannot be the same function. Build both with "
                "the same activation (the same object, if it is a lambda)."
            )
    if not exempt and type(coarse) is not type(fine):
        raise ValueError(
            f"The coarse model is a `{type(coarse).__name__}` and the fine one a "
            f"`{type(fine).__name__}`. They must be of one architecture."
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return (
            _same(one.func, other.func)
            and eqx.tree_equal((one.args, one.keywords), (other.args, other.keywords))
            is True
        )
    if isinstance(one, types.FunctionType) and isinstance(other, types.FunctionType):
        # Two lambdas of one line are the same function if they close over nothing.
        closed = one.__closure__ or other.__closure__
        return one is other or (one.__code__ == other.__code__ and not closed)
    return one is other or one == other


def _name(function: Any) -> str:
    return (
        "missing" if function is None else getattr(function, "__name__", "a function")
    )
