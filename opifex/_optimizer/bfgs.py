import jax.numpy as jnp
import optax

from .._custom_types import Scalar
from .ssbroyden import dense_quasi_newton, Pair


def bfgs(
    *, max_linesearch_steps: int = 20, single_precision: bool = False
) -> optax.GradientTransformationExtraArgs:
    """BFGS with full memory; in all but the update like [`ssbroyden`][], which is
    usually better.

    **Arguments:** and what is raised, those of [`ssbroyden`][].

    ??? cite "Reference"

        J. Nocedal and S. J. Wright, "Numerical optimization", 2nd edition, Springer,
        2006 (equation 6.17 for the update, 6.20 for the first scale).
    """
    return dense_quasi_newton("bfgs", _bfgs, max_linesearch_steps, single_precision)


def ssbfgs(
    *, max_linesearch_steps: int = 20, single_precision: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Self-scaled BFGS with full memory: what it knew is shrunk where it is larger than
    what a step shows. In all else like [`ssbroyden`][].

    **Arguments:** and what is raised, those of [`ssbroyden`][].

    ??? cite "References"

        M. Al-Baali, "Numerical experience with a class of self-scaling quasi-Newton
        algorithms", Journal of Optimization Theory and Applications 96, 1998.
        J. F. Urban, P. Stefanou and J. A. Pons, "Unveiling the optimization process of
        physics informed neural networks", Journal of Computational Physics 523, 2025.
    """
    return dense_quasi_newton("ssbfgs", _ssbfgs, max_linesearch_steps, single_precision)


def _bfgs(pair: Pair) -> tuple[Scalar, Scalar]:
    one = jnp.ones_like(pair.h)
    return jnp.where(pair.first, pair.h, one), one


def _ssbfgs(pair: Pair) -> tuple[Scalar, Scalar]:
    scale = jnp.minimum(1, 1 / pair.b)
    return jnp.where(pair.first, pair.h, scale), jnp.ones_like(scale)
