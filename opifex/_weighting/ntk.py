import math
from typing import ClassVar

import equinox as eqx

from .._custom_types import Terms
from .._misc import check_count
from .base import AbstractWeighting, Needs
from .named import add_up, as_weights, averaged, check_average, ones, ratio


class NTK(AbstractWeighting[Terms]):
    """All terms fall equally fast, as the neural tangent kernel predicts it.

    `w_i = tr K / tr K_i`, where `K_i` is the tangent kernel of the residuals `r` of
    term `i`: `tr K_i` is the sum over its points `x_j` of the squared norm of the
    gradient of `r(x_j)` with respect to the trained parameters, and `tr K` that over
    all terms.

    **Arguments:**

    - `max_points`: from how many points of each term, evenly spaced among all, the
        traces are estimated; exact if it has no more. Residuals must be defined point
        by point: those of one row of each set are evaluated at a time.
    - `decay`: of a moving average of the weights; the paper has none.
    - `every`: steps between two updates.
    - `max_weight`: the largest weight that enters the average.

    ??? cite "Reference"

        S. Wang, X. Yu and P. Perdikaris, "When and why PINNs fail to train: a neural
        tangent kernel perspective", Journal of Computational Physics 449, 2022,
        equations (6.5) and (6.6).
    """

    max_points: int = eqx.field(static=True, default=64)
    decay: int | float = 0.0
    every: int = eqx.field(static=True, default=1000)
    max_weight: int | float = math.inf

    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.POINT_GRADIENTS})

    def __check_init__(self):
        check_count("max_points", self.max_points)
        check_average(self.decay, self.every, self.max_weight)

    def init(self, terms):
        return ones(terms)

    def weights(self, state, terms):
        return as_weights(state, terms)

    def update(self, state, observed):
        traces = observed.point_gradients(self.max_points)
        total = add_up(traces.values())
        new = {name: ratio(total, trace) for name, trace in traces.items()}
        return averaged(state, new, self.decay, self.max_weight)
