from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._misc import check_number
from .base import AbstractWeighting, Needs, Pointwise
from .named import check_name_list, check_names, num_points


class ResidualAttention(AbstractWeighting[dict[str, Float[Array, " _points"]]]):
    """A weight at every point that follows the history of its residual; no training.

    At every step `lambda <- gamma lambda + eta |r| / max |r|`, over the points of each
    term, and the term is the mean of `(lambda r)^2`. So `lambda` stays below
    `eta / (1 - gamma)` once the beginning is forgotten.

    The points must stay what they are: use [`Fixed`][].

    **Arguments:**

    - `names`: the terms that are weighted; all if none is named.
    - `gamma`: how much is remembered.
    - `eta`: how much a residual adds.
    - `initial`: every `lambda` to begin with. The authors begin with 0; then the loss
        grows by orders of magnitude in the first steps, which a recovery may take for
        an explosion.

    ??? cite "Reference"

        S. J. Anagnostopoulos, J. D. Toscano, N. Stergiopulos and G. E. Karniadakis,
        "Residual-based attention in physics-informed neural networks", Computer Methods
        in Applied Mechanics and Engineering 421, 2024 (arXiv:2307.00379).
    """

    names: tuple[str, ...] = eqx.field(static=True, default=())
    gamma: int | float = 0.999
    eta: int | float = 0.01
    initial: int | float = 1.0

    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.RESIDUALS, Needs.FIXED_POINTS})
    every: ClassVar[int] = 1

    def __check_init__(self):
        check_name_list("names", self.names)
        check_number("gamma", self.gamma, 0, 1)
        check_number("eta", self.eta, 0, open_low=True)
        check_number("initial", self.initial, 0)

    def init(self, terms):
        check_names(self.names, terms)
        return {
            name: jnp.full(num_points(terms, name), self.initial, float)
            for name in self.names or terms
        }

    def at_points(self, state, residuals, batch):
        del batch
        check_names(self.names or residuals, state)
        check_names(state, residuals)
        lambdas = self._follow(state, residuals)
        return Pointwise({name: x**2 for name, x in lambdas.items()})

    def update(self, state, observed):
        return self._follow(state, observed.residuals)

    def _follow(self, state, residuals):
        def follow(old, residual):
            size = jnp.abs(residual).astype(old.dtype)
            largest = jnp.max(size)
            share = size / jnp.where(largest > 0, largest, 1)
            return self.gamma * old + self.eta * share

        return {name: follow(old, residuals[name]) for name, old in state.items()}
