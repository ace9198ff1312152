"""Poisson's equation in many dimensions; a point is the last axis of an array."""

import functools
import math
from typing import Any

import numpy as np

from ..base import Reference
from .grids import EPSILON


POISSON_ND = 10
TWO_BODY_DIM = 100


def poisson_nd(x: Any) -> Any:
    """The solution of `-Laplace u = poisson_nd_source` on a unit cube, `(..., dim)`.

    It is given on the boundary. The problem "PNd" of Hao et al. (2024).

    ??? cite "Reference"

        Z. Hao et al., "PINNacle: A comprehensive benchmark of physics-informed neural
        networks for solving PDEs", NeurIPS 2024 (datasets and benchmarks), appendix B.
    """
    xp = x.__array_namespace__()
    return xp.sum(xp.sin(math.pi / 2 * x), axis=-1)


def poisson_nd_source(x: Any) -> Any:
    return math.pi**2 / 4 * poisson_nd(x)


def poisson_nd_reference(dim: int = POISSON_ND, num: int = 10000) -> Reference:
    points = np.random.RandomState(0).uniform(size=(num, dim))
    return Reference(points, {"u": poisson_nd(points)}, EPSILON)


@functools.cache
def _strengths(dim: int) -> np.ndarray:
    # The legacy generator, as the only one whose stream never changes (NEP 19): the
    # coefficients are part of the problem.
    return np.random.RandomState(0).standard_normal(dim - 1)


def two_body(x: Any) -> Any:
    """The solution of `-Laplace u = two_body_source` on the unit ball, 0 around.

    `(1 - |x|^2) sum_i c_i sin(x_i + cos(x_(i+1)) + x_(i+1) cos(x_i))`, for points
    `(..., dim)`, `dim >= 2`, with normally distributed `c_i`: no coordinate can be
    separated from its neighbours.

    ??? cite "Reference"

        Z. Shi, Z. Hu, M. Lin and K. Kawaguchi, "Stochastic Taylor derivative estimator:
        efficient amortization for arbitrary differential operators", NeurIPS 2024
        (the "two-body" solution of its experiments).
    """
    xp = x.__array_namespace__()
    a, b = x[..., :-1], x[..., 1:]
    c = xp.asarray(_strengths(x.shape[-1]), dtype=x.dtype)
    outside = 1 - xp.sum(x**2, axis=-1)
    return outside * (xp.sin(a + xp.cos(b) + b * xp.cos(a)) @ c)


def two_body_source(x: Any) -> Any:
    """By the product rule, at a cost linear in the dimension."""
    xp = x.__array_namespace__()
    a, b = x[..., :-1], x[..., 1:]
    c = xp.asarray(_strengths(x.shape[-1]), dtype=x.dtype)
    phase = a + xp.cos(b) + b * xp.cos(a)
    by_a, by_b = 1 - b * xp.sin(a), xp.cos(a) - xp.sin(b)
    curved = -b * xp.cos(a) - xp.cos(b)
    radial = (xp.cos(phase) * (a * by_a + b * by_b)) @ c
    laplace = (xp.cos(phase) * curved - xp.sin(phase) * (by_a**2 + by_b**2)) @ c
    outside = 1 - xp.sum(x**2, axis=-1)
    return 2 * x.shape[-1] * (xp.sin(phase) @ c) + 4 * radial - outside * laplace


def two_body_reference(dim: int = TWO_BODY_DIM, num: int = 5000) -> Reference:
    """At random points, uniform over the ball."""
    random = np.random.RandomState(1)
    points = random.standard_normal((num, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points *= random.uniform(size=(num, 1)) ** (1 / dim)
    return Reference(points, {"u": two_body(points)}, EPSILON)
