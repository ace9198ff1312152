"""What the fields of several configurations must satisfy."""

from collections.abc import Iterable
from typing import Any

from .._misc import unknown_name


def check_flag(name: str, value: Any) -> None:
    """Raises unless `value` is `True` or `False`."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be `True` or `False`, got {value!r}.")


def check_names(name: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Raises at the first of `values` that is not among the `known`."""
    known = tuple(known)
    if isinstance(values, str):
        raise TypeError(
            f"`{name}` must be a list of names, got the string {values!r}. Write "
            f"[{values!r}]."
        )
    for value in values:
        if value not in known:
            raise ValueError(unknown_name(name, str(value), known))


def check_callable(name: str, value: Any) -> None:
    """Raises unless `value` can be called."""
    if not callable(value):
        raise TypeError(
            f"`{name}` must be a function, got {value!r} of type "
            f"{type(value).__name__}."
        )


def change(config: Any, **new: Any) -> None:
    """Sets fields of a frozen dataclass, for use in its `__post_init__`."""
    for name, value in new.items():
        object.__setattr__(config, name, value)
