from typing import Any

import equinox as eqx
from jaxtyping import Array, UInt32

from .._misc import check_finite
from .._problem.supervised import Pairs
from .._sampler.base import AbstractSampler
from .._sampler.minibatch import Minibatch


class Batches(AbstractSampler[UInt32[Array, " rounds"], dict[str, Any]]):
    """Shuffled batches of rows, with sets of points and values that are in each.

    **Arguments:**

    - `rows`: the data, or the points of an equation.
    - `known`: by name, what every batch holds besides.
    - `interior`: whether an equation holds at the inputs of the rows.
    - `data`: whether their targets are to be fitted.
    """

    rows: Minibatch
    known: dict[str, Pairs]
    interior: bool = eqx.field(static=True)
    data: bool = eqx.field(static=True)

    def __check_init__(self):
        check_finite("known", self.known)

    def init(self, key):
        return self.rows.init(key)

    def batch(self, state, key, step):
        pairs = self.rows.batch(state, key, step)
        sets: dict[str, Any] = dict(self.known)
        if self.interior:
            # Rows that fill up the last batch of an epoch count: they are drawn anew
            # every time, so in the long run each row does as much as any other.
            sets["interior"] = pairs.inputs
            pairs = Pairs(pairs.inputs, pairs.targets)
        if self.data:
            sets["data"] = pairs
        return sets

    def resample(self, state, problem, model, key):
        del problem, model, key
        return state
