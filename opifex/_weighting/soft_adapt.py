from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._custom_types import Count, Terms
from .._misc import check_count, check_number
from .base import AbstractWeighting, Needs
from .named import as_weights, from_vector, to_vector, zeros


class _SoftAdaptState(eqx.Module):
    weights: Terms
    last: Terms
    count: Count  # updates


class SoftAdapt(AbstractWeighting[_SoftAdaptState]):
    """Weights by how fast the terms change; they add up to one.

    With `s_i` the rate of change of term `L_i` a step (a difference of first order,
    over `every` steps), `w = softmax(beta s)`. Two variants, which may be combined:
    the rates divided by `sum_j |s_j|`, and the exponentials weighted by the losses,
    `w_i = f_i exp(beta s_i) / sum_j f_j exp(beta s_j)` with `f_i` the mean of the two
    values that make up the difference. The weights are equal until there are two.

    **Arguments:**

    - `beta`: positive favours the terms that fall least, negative those that fall most.
    - `normalized`, `loss_weighted`: the variants.
    - `every`: steps between two updates.

    ??? cite "Reference"

        A. A. Heydari, C. A. Thompson and A. Mehmood, "SoftAdapt: techniques for
        adaptive loss weighting of neural networks with multi-part loss functions",
        arXiv:1912.12355, 2019, section 3.1.
    """

    beta: int | float = 0.1
    normalized: bool = eqx.field(static=True, default=False)
    loss_weighted: bool = eqx.field(static=True, default=False)
    every: int = eqx.field(static=True, default=5)

    needs: ClassVar[frozenset[Needs]] = frozenset()

    def __check_init__(self):
        check_number("beta", self.beta)
        check_count("every", self.every)

    def init(self, terms):
        equal = {name: jnp.full((), 1 / len(terms), float) for name in terms}
        return _SoftAdaptState(equal, zeros(terms), jnp.zeros((), jnp.int32))

    def weights(self, state, terms):
        return as_weights(state.weights, terms)

    def update(self, state, observed):
        terms = to_vector(observed.terms)
        last = jnp.where(state.count == 0, terms, to_vector(state.last))
        rate = (terms - last) / self.every
        if self.normalized:
            total = jnp.sum(jnp.abs(rate))
            rate = rate / jnp.where(total > 0, total, 1)
        logits = self.beta * rate
        if self.loss_weighted:
            mean = (terms + last) / 2
            logits = logits + jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny))
        equal = jnp.full(terms.shape, 1 / terms.size)
        w = jnp.where(state.count == 0, equal, jax.nn.softmax(logits))
        named = lambda vector: from_vector(vector, observed.terms)
        return _SoftAdaptState(named(w), named(terms), state.count + 1)
