from .fno import FNO as FNO, Pointwise as Pointwise, SpectralConv as SpectralConv
from .mlp import MLP as MLP


__all__ = [
    "FNO",
    "MLP",
    "Pointwise",
    "SpectralConv",
]


def __dir__():
    return __all__
