from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu

from .._custom_types import Scalar, Terms
from .._misc import check_count, check_number, unknown_name
from .augmented_lagrangian import grown, raised_by
from .base import AbstractWeighting
from .named import check_names


class _MultipliersState(eqx.Module):
    mu: Scalar
    multipliers: Terms


class Multipliers(AbstractWeighting[_MultipliersState]):
    """[`AugmentedLagrangian`][] for problems that give terms, and no residuals.

    Each constraint is a term, the mean of `|r|^2`, which is weighted by `mu`; and one
    or more terms that are the mean of a component of `r`, with its sign, each weighted
    by its multiplier. These means are what comes to vanish, whatever else is in the
    loss. The other terms are left alone.

    The loss is no measure of success, and may be negative: judge a run by its terms.

    **Arguments:**

    - `constraints`: for each, the name of the mean square, and that of the means: of
        one term, or of all that begin so before a `/`.
    - `mu`, `beta`, `max_mu`, `every`: as of [`AugmentedLagrangian`][], where the
        reference is.
    """

    constraints: tuple[tuple[str, str], ...] = eqx.field(static=True)
    mu: int | float = 1.0
    beta: int | float = 2.0
    max_mu: int | float = 1e4
    every: int = eqx.field(static=True, default=1000)

    def __check_init__(self):
        check_number("mu", self.mu, 0, open_low=True)
        check_number("beta", self.beta, 1)
        check_number("max_mu", self.max_mu, self.mu)
        check_count("every", self.every)

    @property
    def needs(self):
        return frozenset()

    def init(self, terms):
        names = self._linear(terms)
        zeros = {name: jnp.zeros((), terms[name].dtype) for name in names}
        return _MultipliersState(jnp.full((), self.mu, float), zeros)

    def _linear(self, terms: Mapping) -> list[str]:
        found = []
        for square, linear in self.constraints:
            check_names([square], terms)
            mine = [n for n in terms if n == linear or n.startswith(linear + "/")]
            if not mine:
                raise ValueError(unknown_name("constraints", linear, terms))
            found += mine
        return found

    def weights(self, state, terms):
        squares = {square: state.mu for square, _ in self.constraints}
        own = squares | state.multipliers
        check_names(own, terms)
        one = jnp.ones((), float)
        return {name: own.get(name, one).astype(v.dtype) for name, v in terms.items()}

    def update(self, state, observed):
        new = _MultipliersState(
            grown(state.mu, self.beta, self.max_mu),
            {
                name: raised_by(x, state.mu, observed.terms[name].astype(x.dtype))
                for name, x in state.multipliers.items()
            },
        )
        # The model must have been trained for the first multipliers.
        begun = observed.step > 0
        return jtu.tree_map(lambda n, o: jnp.where(begun, n, o), new, state)
