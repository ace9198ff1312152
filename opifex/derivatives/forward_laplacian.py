"""The forward Laplacian of the package folx, where it is installed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._wanted import coordinates_of_laplacian
from .base import AbstractDerivatives
from .nested import Forward


class ForwardLaplacian(AbstractDerivatives):
    """Laplacians by `folx`, the rest by [`Forward`][].

    ??? cite "Reference"

        R. Li et al., "A computational framework for neural network-based variational
        Monte Carlo with Forward Laplacian", Nature Machine Intelligence 6, 2024. N. Gao
        et al., "Folx - Forward Laplacian for JAX", 2023.
    """

    def __call__(self, function, points, wanted, key=None):
        wanted = list(wanted)
        laplacians = [w for w in wanted if coordinates_of_laplacian(w)]
        others = [w for w in wanted if not coordinates_of_laplacian(w)]
        value, found = Forward()(function, points, others, key)
        for w in laplacians:
            found[w] = _laplacian(function, points, coordinates_of_laplacian(w))
        return value, found


def _laplacian(function, points: Array, over: tuple[int, ...]) -> Array:
    try:
        from folx import forward_laplacian
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The forward Laplacian needs the package 'folx', which is not installed. "
            "Install it with: pip install 'opifex[folx]', or use "
            '`derivatives="taylor"`, which takes a Laplacian as one coefficient too.'
        ) from error

    def at(point):
        some = jnp.asarray(over)
        restricted = lambda x: function(point.at[some].set(x))
        return forward_laplacian(restricted)(point[some]).laplacian

    # It is not strict about dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.vmap(at, out_axes=-1)(points)
