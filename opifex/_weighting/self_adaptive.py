from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Float

from .._misc import check_count, check_number, squared
from .._optimizer.base import check_optimizer
from .base import AbstractWeighting, Needs, Pointwise
from .named import check_name_list, check_names, num_points


class _SelfAdaptiveState(eqx.Module):
    lambdas: dict[str, Float[Array, " _points"]]
    opt_state: Any


class SelfAdaptive(AbstractWeighting[_SelfAdaptiveState]):
    """A trained weight at every point, which grows where the residual stays large.

    A term is the mean over its points of `m(lambda) |r|^2`; the parameters descend on
    it while each `lambda` ascends on it, along `m'(lambda) |r|^2 / points`.

    The points must stay what they are: use [`Fixed`][].

    **Arguments:**

    - `names`: the terms that are weighted; all if none is named.
    - `mask`: `m`, a function of one number, not negative and growing for positive ones.
    - `initial`: every `lambda` to begin with.
    - `optim`: an optax optimizer of the `lambda`. It is handed the gradient with its
        sign turned, so that what descends ascends.
    - `every`: steps between two updates.

    ??? cite "Reference"

        L. D. McClenny and U. M. Braga-Neto, "Self-adaptive physics-informed neural
        networks", Journal of Computational Physics 474, 2023, section 3.
    """

    names: tuple[str, ...] = eqx.field(static=True, default=())
    mask: Callable = jnp.square
    initial: int | float = 1.0
    optim: optax.GradientTransformation = optax.adam(1e-2)
    every: int = eqx.field(static=True, default=1)

    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.RESIDUALS, Needs.FIXED_POINTS})

    def __check_init__(self):
        check_name_list("names", self.names)
        if not callable(self.mask):
            raise ValueError(f"`mask` must be a function, got {self.mask!r}.")
        check_number("initial", self.initial)
        check_optimizer("optim", self.optim)
        check_count("every", self.every)

    def init(self, terms):
        check_names(self.names, terms)
        lambdas = {
            name: jnp.full(num_points(terms, name), self.initial, float)
            for name in self.names or terms
        }
        return _SelfAdaptiveState(lambdas, self.optim.init(lambdas))

    def at_points(self, state, residuals, batch):
        del batch
        check_names(self.names or residuals, state.lambdas)
        check_names(state.lambdas, residuals)
        return Pointwise({n: self.mask(x) for n, x in state.lambdas.items()})

    def update(self, state, observed):
        def descent(name, values):
            square = squared(observed.residuals[name]).astype(values.dtype)
            slope = jax.vmap(jax.grad(self.mask))(values)
            return -slope * square / values.size

        slopes = {name: descent(name, x) for name, x in state.lambdas.items()}
        # Optax is not strict about dtypes.
        with jax.numpy_dtype_promotion("standard"):
            change, opt_state = self.optim.update(
                slopes, state.opt_state, state.lambdas
            )
        lambdas = jtu.tree_map(jnp.add, state.lambdas, change)
        return _SelfAdaptiveState(lambdas, opt_state)
