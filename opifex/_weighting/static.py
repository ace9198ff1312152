from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from .base import AbstractWeighting, Needs
from .named import check_names


class Static(AbstractWeighting[None]):
    """Fixed weights; a term that is not named has weight one.

    **Arguments:**

    - `values`: weights, by the name of their term.
    """

    values: dict[str, ScalarLike] = eqx.field(default_factory=dict)

    needs: ClassVar[frozenset[Needs]] = frozenset()
    every: ClassVar[int] = 1

    def init(self, terms):
        del terms

    def weights(self, state, terms):
        del state
        check_names(self.values, terms)
        return {
            n: jnp.asarray(self.values.get(n, 1.0), v.dtype) for n, v in terms.items()
        }

    def update(self, state, observed):
        del observed
        return state
