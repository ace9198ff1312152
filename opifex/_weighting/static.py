import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from .._misc import unknown_name
from .base import AbstractWeighting


class Static(AbstractWeighting[None]):
    """Fixed weights; a term that is not named has weight one.

    **Arguments:**

    - `values`: weights, by the name of their term.
    """

    values: dict[str, ScalarLike] = eqx.field(default_factory=dict)

    def init(self, names):
        del names

    def weights(self, state, terms):
        del state
        for name in self.values:
            if name not in terms:
                raise ValueError(unknown_name("weighting", name, terms))
        return {
            n: jnp.asarray(self.values.get(n, 1.0), v.dtype) for n, v in terms.items()
        }

    def update(self, state, terms):
        del terms
        return state
