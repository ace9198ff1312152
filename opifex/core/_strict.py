import dataclasses
import functools
from typing import TypeVar

from .._misc import unknown_name


Config = TypeVar("Config")


def strict(cls: type[Config]) -> type[Config]:
    """Makes a dataclass name the nearest field when it is given one that is unknown."""
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    plain = cls.__init__

    @functools.wraps(plain)
    def init(self, *args, **kwargs):
        for name in kwargs:
            if name not in names:
                raise TypeError(unknown_name(cls.__name__, name, names))
        plain(self, *args, **kwargs)

    cls.__init__ = init
    return cls
