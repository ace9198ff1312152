from .fno import FNO as FNO, Pointwise as Pointwise, SpectralConv as SpectralConv
from .mlp import MLP as MLP
