from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, ScalarLike

from .._custom_types import Count
from .base import AbstractWeighting, Needs
from .named import check_names


class Scheduled(AbstractWeighting[Count]):
    """Weights that are functions of the step; a term that is not named has weight one.

    **Arguments:**

    - `schedules`: by the name of their term, functions that map the step to a scalar
        (those of optax, or your own), or plain numbers.
    """

    schedules: dict[str, Callable[[Int[Array, ""]], Any] | ScalarLike]

    needs: ClassVar[frozenset[Needs]] = frozenset()
    every: ClassVar[int] = 1

    def __check_init__(self):
        for name, value in self.schedules.items():
            if not callable(value) and jnp.shape(value) != ():
                raise ValueError(
                    f"`schedules[{name!r}]` must be a function of the step or a "
                    f"number, got {value!r}."
                )

    def init(self, terms):
        del terms
        return jnp.zeros((), jnp.int32)

    def weights(self, state, terms):
        check_names(self.schedules, terms)

        def weight(name, dtype):
            value = self.schedules.get(name, 1.0)
            # Optax is not strict about dtypes.
            with jax.numpy_dtype_promotion("standard"):
                return jnp.asarray(value(state) if callable(value) else value, dtype)

        return {name: weight(name, v.dtype) for name, v in terms.items()}

    def update(self, state, observed):
        return (observed.step + 1).astype(state.dtype)
