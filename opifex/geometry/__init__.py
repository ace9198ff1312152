from .ball import Ball as Ball, Disc as Disc
from .base import AbstractDomain as AbstractDomain
from .box import Box as Box, Interval as Interval
from .complex_domain import ComplexDomain as ComplexDomain
from .csg import Difference as Difference, Intersection as Intersection, Union as Union
from .ellipsoid import Ellipsoid as Ellipsoid
from .pieces import AbstractPiece as AbstractPiece
from .polygon import Polygon as Polygon, TriangleMesh as TriangleMesh
from .product import TimeProduct as TimeProduct
