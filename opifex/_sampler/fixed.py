from jaxtyping import Array, PyTree

from .._misc import check_finite
from .base import AbstractSampler


class Fixed(AbstractSampler[None, PyTree]):
    """The same batch at every step.

    **Arguments:**

    - `points`: the batch: sets of points by name, [`Pairs`][], or any pytree of arrays.
    """

    points: PyTree[Array]

    def __check_init__(self):
        check_finite("points", self.points)

    def init(self, key):
        del key

    def batch(self, state, key, step):
        del state, key, step
        return self.points

    def resample(self, state, problem, model, key):
        del problem, model, key
        return state
