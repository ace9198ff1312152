from .ball import Ball as Ball, Disc as Disc
from .base import AbstractDomain as AbstractDomain
from .box import Box as Box, Interval as Interval
from .complex_domain import ComplexDomain as ComplexDomain
from .csg import Difference as Difference, Intersection as Intersection, Union as Union
from .ellipsoid import Ellipsoid as Ellipsoid
from .pieces import AbstractPiece as AbstractPiece
from .polygon import Polygon as Polygon, TriangleMesh as TriangleMesh
from .product import TimeProduct as TimeProduct


__all__ = [
    "AbstractDomain",
    "AbstractPiece",
    "Ball",
    "Box",
    "ComplexDomain",
    "Difference",
    "Disc",
    "Ellipsoid",
    "Intersection",
    "Interval",
    "Polygon",
    "TimeProduct",
    "TriangleMesh",
    "Union",
]


def __dir__():
    return __all__
