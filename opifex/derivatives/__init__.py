from ._wanted import bilaplacian as bilaplacian, laplacian as laplacian
from .base import AbstractDerivatives as AbstractDerivatives
from .choose import DERIVATIVES as DERIVATIVES
from .field import Field as Field
from .forward_laplacian import ForwardLaplacian as ForwardLaplacian
from .jet import Jet as Jet
from .nested import (
    Forward as Forward,
    ForwardReverse as ForwardReverse,
    Nested as Nested,
)
from .residual import Residual as Residual, residual as residual
from .stde import STDE as STDE
from .taylor import Taylor as Taylor
