from typing import Any, ClassVar

from .base import AbstractWeighting, Needs, Pointwise, renew


class Product(AbstractWeighting[tuple[Any, ...]]):
    """Several weightings at once: their weights multiply, of terms and of points.

    Multipliers add up. A weighting that looks at gradients sees those of the terms with
    the weights of their points, as in `Product(Causal(...), GradNormBalance())`, but
    without weights of terms. Each is updated when it is due.

    **Arguments:**

    - `parts`: the weightings, in any order.
    """

    parts: tuple[AbstractWeighting, ...]

    every: ClassVar[int] = 1

    def __init__(self, *parts: AbstractWeighting):
        self.parts = parts

    def __check_init__(self):
        if not self.parts:
            raise ValueError("`parts` is empty; name at least one weighting.")
        for part in self.parts:
            if not isinstance(part, AbstractWeighting):
                raise TypeError(
                    f"`parts` must be instances of `AbstractWeighting`, got {part!r} "
                    f"of type {type(part).__name__}."
                )

    @property
    def needs(self) -> frozenset[Needs]:
        return frozenset().union(*(part.needs for part in self.parts))

    def init(self, terms):
        return tuple(part.init(terms) for part in self.parts)

    def weights(self, state, terms):
        total = {}
        for part, own in zip(self.parts, state, strict=True):
            weights = part.weights(own, terms)
            total = {n: total[n] * w if n in total else w for n, w in weights.items()}
        return total

    def at_points(self, state, residuals, batch):
        total = Pointwise()
        for part, own in zip(self.parts, state, strict=True):
            if Needs.RESIDUALS in part.needs:
                total = total.times(part.at_points(own, residuals, batch))
        return total

    def metrics(self, state):
        metrics = {}
        for part, own in zip(self.parts, state, strict=True):
            metrics |= part.metrics(own)
        return metrics

    def update(self, state, observed):
        pairs = zip(self.parts, state, strict=True)
        return tuple(renew(part, own, observed) for part, own in pairs)
