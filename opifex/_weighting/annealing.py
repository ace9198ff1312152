import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._custom_types import Scalar, Terms
from .base import AbstractWeighting, Needs
from .named import as_weights, averaged, check_average, check_names, ones, ratio


class LearningRateAnnealing(AbstractWeighting[Terms]):
    """The other terms pull as hard as the steepest entry of the reference term.

    With `g_i` the gradient of term `i` over all trained parameters and `r` the
    reference, `w_i` follows `max |g_r| / mean |g_i|` (the mean of absolute values) by a
    moving average with `decay`, from one; `w_r = 1`. A term whose gradient vanishes
    keeps its weight.

    **Arguments:**

    - `reference`: the name of a term; in the paper, the residual of the equation.
    - `decay`: of the average; `1 - alpha` in equation (41), where the authors' program
        has 0.9.
    - `every`: steps between two updates.
    - `max_weight`: the largest weight that enters the average.

    ??? cite "Reference"

        S. Wang, Y. Teng and P. Perdikaris, "Understanding and mitigating gradient flow
        pathologies in physics-informed neural networks", SIAM Journal on Scientific
        Computing 43(5), 2021, equations (40) to (42).
    """

    reference: str
    decay: int | float = 0.9
    every: int = eqx.field(static=True, default=10)
    max_weight: int | float = math.inf

    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TERM_GRADIENTS})

    def __check_init__(self):
        check_average(self.decay, self.every, self.max_weight)

    def init(self, terms):
        if terms:
            check_names([self.reference], terms)
        return ones(terms)

    def weights(self, state, terms):
        check_names([self.reference], terms)
        return as_weights(state, terms)

    def update(self, state, observed):
        gradients = observed.term_gradients()
        steepest = _largest(gradients[self.reference])
        new = {name: ratio(steepest, _mean(g)) for name, g in gradients.items()}
        new[self.reference] = jnp.ones_like(steepest)
        return averaged(state, new, self.decay, self.max_weight)


def _largest(tree: PyTree) -> Scalar:
    leaves = [jnp.max(jnp.abs(x)).astype(float) for x in jtu.tree_leaves(tree)]
    return jnp.max(jnp.stack(leaves))


def _mean(tree: PyTree) -> Scalar:
    leaves = jtu.tree_leaves(tree)
    total = sum(jnp.sum(jnp.abs(x)).astype(float) for x in leaves)
    return jnp.asarray(total / sum(x.size for x in leaves))
