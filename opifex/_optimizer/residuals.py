import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._custom_types import Scalar
from .base import needed


class AbstractSquares(eqx.Module):
    """A loss that is a sum of squares, and says of what: the `value_fn` of optimizers
    that look at residuals."""

    @abc.abstractmethod
    def __call__(self, params: PyTree) -> Scalar:
        """The loss; it may differ from the sum of the squares by rounding."""

    @abc.abstractmethod
    def residuals(self, params: PyTree) -> Float[Array, " m"]:
        """What is squared and summed."""

    @abc.abstractmethod
    def jacobian(self, params: PyTree) -> Float[Array, "m n"]:
        """The derivative of each residual with respect to each parameter, these in the
        order of `jax.flatten_util.ravel_pytree`."""


class SumOfSquares(AbstractSquares):
    """The sum of the squares of a function of your own, for a loop without
    [`train_step`][].

    **Arguments:**

    - `residual_fn`: maps parameters to a vector.
    """

    residual_fn: Callable[[Any], Array]

    def __call__(self, params):
        return jnp.sum(self.residual_fn(params) ** 2)

    def residuals(self, params):
        return self.residual_fn(params)

    def jacobian(self, params):
        return dense_jacobian(self.residual_fn, params)


def dense_jacobian(
    residual_fn: Callable[[PyTree], Float[Array, " m"]], params: PyTree
) -> Float[Array, "m n"]:
    """The Jacobian of any function, in as many passes as it has of the fewer: of
    residuals or of parameters."""
    point, unravel = ravel_pytree(params)
    flat_fn = lambda point: residual_fn(unravel(point))
    num_residuals = jax.eval_shape(flat_fn, point).size
    jacobian = jax.jacfwd if point.size < num_residuals else jax.jacrev
    return jacobian(flat_fn)(point)


def needed_squares(name: str, extra: dict[str, Any]) -> tuple[Scalar, AbstractSquares]:
    """The value of the loss, and the loss, out of the keyword arguments of `update`."""
    value, value_fn = needed(name, extra, "value", "value_fn")
    if isinstance(value_fn, AbstractSquares):
        return value, value_fn
    raise TypeError(
        f"`{name}` looks at residuals, which the `value_fn` handed to its `update` "
        "does not know. Give it `SumOfSquares(residual_fn)`; `train_step` does as much."
    )
