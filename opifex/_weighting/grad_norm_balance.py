import math
from typing import ClassVar

import equinox as eqx

from .._custom_types import Terms
from .base import AbstractWeighting, Needs
from .named import add_up, as_weights, averaged, check_average, ones, ratio, tree_norm


class GradNormBalance(AbstractWeighting[Terms]):
    """All terms pull equally hard: the weighted gradients have one norm.

    With `g_i` the gradient of term `i`, the weights begin at one and follow a moving
    average, `w_i <- decay w_i + (1 - decay) sum_j |g_j| / |g_i|`. A term whose gradient
    vanishes keeps its weight.

    **Arguments:**

    - `decay`: of the average; `alpha` in the paper.
    - `every`: steps between two updates.
    - `max_weight`: the largest weight that enters the average.

    ??? cite "Reference"

        S. Wang, S. Sankaran, H. Wang and P. Perdikaris, "An expert's guide to training
        physics-informed neural networks", arXiv:2308.08468, 2023, algorithm 1.
    """

    decay: int | float = 0.9
    every: int = eqx.field(static=True, default=1000)
    max_weight: int | float = math.inf

    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TERM_GRADIENTS})

    def __check_init__(self):
        check_average(self.decay, self.every, self.max_weight)

    def init(self, terms):
        return ones(terms)

    def weights(self, state, terms):
        return as_weights(state, terms)

    def update(self, state, observed):
        gradients = observed.term_gradients()
        norms = {name: tree_norm(g) for name, g in gradients.items()}
        total = add_up(norms.values())
        new = {name: ratio(total, norm) for name, norm in norms.items()}
        return averaged(state, new, self.decay, self.max_weight)
