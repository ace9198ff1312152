from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from .._custom_types import Count, Terms
from .._misc import check_count, check_number
from .._optimizer.base import check_optimizer
from .base import AbstractWeighting, Needs
from .named import as_weights, from_vector, ones, to_vector, tree_norm, zeros


class _GradNormState(eqx.Module):
    weights: Terms
    first: Terms  # the terms at the first update
    opt_state: Any
    count: Count  # updates


class GradNorm(AbstractWeighting[_GradNormState]):
    """Trained weights: terms that have fallen less may pull harder.

    With `g_i` the gradient of term `L_i`, `G_i = w_i |g_i|` and `r_i` the ratio
    `L_i / L_i(0)` over its mean, the weights descend on

        sum_i |G_i - mean(G) r_i^alpha|

    with the targets held constant, and are then scaled to add up to the number of
    terms. The gradients are those over all trained parameters, where the paper takes
    the last shared layer.

    **Arguments:**

    - `alpha`: how hard terms that lag behind are pulled; 0 asks for equal norms.
    - `optim`: an optax optimizer of the weights.
    - `every`: steps between two updates.
    - `min_weight`: below which no weight falls, before they are scaled; the paper does
        not keep them positive.

    ??? cite "Reference"

        Z. Chen, V. Badrinarayanan, C.-Y. Lee and A. Rabinovich, "GradNorm: gradient
        normalization for adaptive loss balancing in deep multitask networks", ICML
        2018, equations (1) and (2) and algorithm 1.
    """

    alpha: int | float = 1.5
    optim: optax.GradientTransformation = optax.adam(0.025)
    every: int = eqx.field(static=True, default=1)
    min_weight: int | float = 1e-3

    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TERM_GRADIENTS})

    def __check_init__(self):
        check_number("alpha", self.alpha, 0)
        check_optimizer("optim", self.optim)
        check_count("every", self.every)
        check_number("min_weight", self.min_weight, 0, open_low=True)

    def init(self, terms):
        opt_state = self.optim.init(jnp.ones(len(terms), float))
        zero = jnp.zeros((), jnp.int32)
        return _GradNormState(ones(terms), zeros(terms), opt_state, zero)

    def weights(self, state, terms):
        return as_weights(state.weights, terms)

    def update(self, state, observed):
        gradients = observed.term_gradients()
        norms = to_vector({name: tree_norm(g) for name, g in gradients.items()})
        terms, w = to_vector(observed.terms), to_vector(state.weights)
        first = jnp.where(state.count == 0, terms, to_vector(state.first))
        fallen = jnp.where(first > 0, terms / jnp.where(first > 0, first, 1), 1)
        target = jnp.mean(w * norms) * (fallen / jnp.mean(fallen)) ** self.alpha
        slope = jnp.sign(w * norms - target) * norms
        # Optax is not strict about dtypes.
        with jax.numpy_dtype_promotion("standard"):
            change, opt_state = self.optim.update(slope, state.opt_state, w)
            w = jnp.maximum(w + jnp.asarray(change), self.min_weight)
        w = w * (w.size / jnp.sum(w))
        names = observed.terms
        return _GradNormState(
            from_vector(w, names), from_vector(first, names), opt_state, state.count + 1
        )
