from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._custom_types import Count, Terms
from .._misc import check_count, check_number
from .base import AbstractWeighting, Needs
from .named import as_weights, from_vector, ones, to_vector, zeros


# Folded into the key of the loss, into which small numbers are folded elsewhere.
_PURPOSE = 2**31 + 1


class _ReLoBRaLoState(eqx.Module):
    weights: Terms
    first: Terms
    last: Terms
    count: Count  # updates


class ReLoBRaLo(AbstractWeighting[_ReLoBRaLoState]):
    """Relative loss balancing with random lookback: terms that fall slowly count more.

    With `m` terms `L_i`, `b(s) = m softmax_i(L_i / (temperature L_i(s)))` compares them
    with those of an earlier step `s`. The weights are

        w <- alpha (rho w + (1 - rho) b(0)) + (1 - alpha) b(last)

    where `rho` is 1 with probability `lookback` and else 0.

    **Arguments:**

    - `alpha`: how much of the past is kept.
    - `lookback`: the expectation of `rho`.
    - `temperature`: the lower, the more the slowest term is favoured.
    - `every`: steps between two updates.

    ??? cite "Reference"

        R. Bischof and M. A. Kraus, "Multi-objective loss balancing for physics-informed
        deep learning", Computer Methods in Applied Mechanics and Engineering 439, 2025;
        arXiv:2110.09813.
    """

    alpha: int | float = 0.999
    lookback: int | float = 0.999
    temperature: int | float = 0.1
    every: int = eqx.field(static=True, default=1)

    needs: ClassVar[frozenset[Needs]] = frozenset()

    def __check_init__(self):
        check_number("alpha", self.alpha, 0, 1)
        check_number("lookback", self.lookback, 0, 1)
        check_number("temperature", self.temperature, 0, open_low=True)
        check_count("every", self.every)

    def init(self, terms):
        zero = jnp.zeros((), jnp.int32)
        return _ReLoBRaLoState(ones(terms), zeros(terms), zeros(terms), zero)

    def weights(self, state, terms):
        return as_weights(state.weights, terms)

    def update(self, state, observed):
        terms, begins = to_vector(observed.terms), state.count == 0
        first = jnp.where(begins, terms, to_vector(state.first))
        last = jnp.where(begins, terms, to_vector(state.last))
        key = jr.fold_in(observed.key, _PURPOSE)
        rho = jr.bernoulli(key, float(self.lookback)).astype(terms.dtype)
        past = rho * to_vector(state.weights) + (1 - rho) * self._balance(terms, first)
        now = self._balance(terms, last)
        w = self.alpha * past + (1 - self.alpha) * now
        named = lambda vector: from_vector(vector, observed.terms)
        return _ReLoBRaLoState(named(w), named(first), named(terms), state.count + 1)

    def _balance(
        self, terms: Float[Array, " terms"], before: Float[Array, " terms"]
    ) -> Float[Array, " terms"]:
        fallen = jnp.where(before > 0, terms / jnp.where(before > 0, before, 1), 1)
        return terms.size * jax.nn.softmax(fallen / self.temperature)
