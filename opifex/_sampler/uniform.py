import jax.random as jr

from ..geometry.base import AbstractDomain
from .base import AbstractSampler, check_domains, PointSets


class Uniform(AbstractSampler[None, PointSets]):
    """Fresh points at every step, uniform over each domain.

    **Arguments:**

    - `domains`: where the points of each named set lie.
    - `num_points`: how many each set has.
    """

    domains: dict[str, AbstractDomain]
    num_points: dict[str, int]

    def __check_init__(self):
        check_domains(self.domains, self.num_points)

    def init(self, key):
        del key

    def batch(self, state, key, step):
        del state, step
        return sample_each(self.domains, self.num_points, key)

    def resample(self, state, problem, model, key):
        del problem, model, key
        return state


def sample_each(domains, num_points, key) -> PointSets:
    """Uniform points of each domain, each from a key of its own."""
    return {
        name: domain.sample(num_points[name], jr.fold_in(key, i))
        for i, (name, domain) in enumerate(sorted(domains.items()))
    }
