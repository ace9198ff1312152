"""Learning an operator: from functions on a grid to functions on a grid.

[`Supervised`][] does the work: a row is a pair of functions, `(*grid, channels)`. Here
is what functions need beside it.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._misc import check_count, check_finite, safe_sqrt, squared
from .supervised import relative_l2, RowLoss, Supervised


class UnitGaussian(eqx.Module):
    """Brings values to mean zero and variance one, channel by channel.

    One mean and one deviation for all rows and the whole grid, so that they serve every
    grid. See [`unit_gaussian`][], which measures them.
    """

    mean: Float[Array, " _channels"]
    std: Float[Array, " _channels"]

    def encode(self, x: Float[Array, "*grid _channels"]) -> Array:
        """From values to numbers of order one."""
        mean, std = self._spread(x)
        return (x - mean) / std

    def decode(self, x: Float[Array, "*grid _channels"]) -> Array:
        """From numbers of order one to values."""
        mean, std = self._spread(x)
        return x * std + mean

    def _spread(self, x: Array) -> tuple[Array, Array]:
        if x.shape[-1:] != self.mean.shape:
            raise ValueError(
                f"Values of {len(self.mean)} channels were normalised, got an array of "
                f"shape {x.shape}. The channels must be its last axis."
            )
        spread = lambda a: jnp.broadcast_to(a.astype(x.dtype), x.shape)
        return spread(self.mean), spread(self.std)


def unit_gaussian(values: ArrayLike) -> UnitGaussian:
    """Measures the mean and the deviation of data.

    **Arguments:**

    - `values`: `(rows, *grid, channels)`, those of training only.

    **Raises:** `ValueError` if a channel is constant, or data are empty or not finite.
    """
    values = jnp.asarray(values)
    if values.ndim < 2:
        raise ValueError(
            f"`values` must be `(rows, *grid, channels)`, got shape {values.shape}."
        )
    check_finite("values", values)
    # By NumPy in double precision: sums over millions of values.
    flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    mean, std = flat.mean(0), flat.std(0)
    if (std <= np.finfo(values.dtype).eps * np.abs(mean)).any():
        raise ValueError(
            f"A channel of `values` is constant: their deviations are {std}. Leave it "
            "out, or do not normalise."
        )
    return UnitGaussian(*(jnp.asarray(a, values.dtype) for a in (mean, std)))


class Normalised(eqx.Module):
    """The `apply` of [`Supervised`][] for networks between normalised functions.

    **Arguments:**

    - `inputs`, `outputs`: their normalisations. The loss sees decoded predictions.
    """

    inputs: UnitGaussian
    outputs: UnitGaussian

    def __call__(
        self, model: Callable[[Array], Array], inputs: Array, key: Any = None
    ) -> tuple[Array, Any]:
        del key
        prediction = jax.vmap(model)(self.inputs.encode(inputs))
        return self.outputs.decode(prediction), model


def operator_problem(
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    loss: RowLoss = relative_l2,
    metrics: dict[str, RowLoss] | None = None,
) -> Supervised:
    """The problem of learning the operator that maps some functions to others.

    The model maps one normalised function, `(*grid, channels)`, to one; predictions for
    a batch are `problem.apply(model, inputs, key)[0]`, on any grid, whatever the key.

    **Arguments:**

    - `inputs`, `targets`: the data of training, `(rows, *grid, channels)`, which both
        are normalised by.
    - `loss`, `metrics`: see [`Supervised`][]. Relative to the size of each target, in
        the 2-norm ([`relative_l2`][]) or with slopes ([`relative_h1`][]).
    """
    apply = Normalised(unit_gaussian(inputs), unit_gaussian(targets))
    return Supervised(loss, apply, metrics or {})


def relative_h1(*, periodic: bool, length: int | float = 1.0) -> RowLoss:
    """The relative error of functions with their slopes, in the Sobolev norm H1.

    `sqrt(|e|^2 + |grad e|^2) / sqrt(|u|^2 + |grad u|^2)` with `e` the error, `u` the
    target and norms over the grid: it counts what is wrong in the fine scales.

    **Arguments:**

    - `periodic`: whether slopes are those of the Fourier series on the grid `j / n`;
        else they are differences of second order, on `j / (n - 1)`, which need three
        points an axis.
    - `length`: of the domain, the same along each axis.

    **Returns:** a function of `(rows, *grid, channels)` twice, one number a row.
    """
    if not 0 < length < float("inf"):
        raise ValueError(f"`length` must be positive, got {length!r}.")
    slope = _spectral_slope if periodic else _difference

    def size(u: Array) -> Array:
        parts = [u, *(slope(u, axis) / length for axis in range(1, u.ndim - 1))]
        squares = [jnp.sum(squared(p).reshape(len(u), -1), axis=1) for p in parts]
        return safe_sqrt(sum(squares[1:], squares[0]))

    def row_loss(prediction, target):
        whole = size(target)
        return size(prediction - target) / jnp.maximum(
            whole, jnp.finfo(whole.dtype).eps
        )

    return row_loss


def _spectral_slope(u: Array, axis: int) -> Array:
    """On a period of length one; the cosine of Nyquist has no slope at its points."""
    n = u.shape[axis]
    k = 2 * np.pi * np.arange(n // 2 + 1)
    k[n // 2 :] *= n % 2
    shape = [1] * u.ndim
    shape[axis] = len(k)
    z = jnp.fft.rfft(u, axis=axis)
    factor = jnp.asarray(1j * k.reshape(shape), z.dtype)
    return jnp.fft.irfft(z * jnp.broadcast_to(factor, z.shape), n, axis=axis)


def _difference(u: Array, axis: int) -> Array:
    """On a domain of length one: central, and one-sided of second order at the ends."""
    n = u.shape[axis]
    if n < 3:
        raise ValueError(
            f"A function that is not periodic needs three points an axis, got {n}. Use "
            "a finer grid, or another loss."
        )
    v = jnp.moveaxis(u, axis, 0)
    first = -1.5 * v[:1] + 2 * v[1:2] - 0.5 * v[2:3]
    last = 1.5 * v[-1:] - 2 * v[-2:-1] + 0.5 * v[-3:-2]
    inside = (v[2:] - v[:-2]) / 2
    return jnp.moveaxis(jnp.concatenate([first, inside, last]) * (n - 1), 0, axis)


def coarsen(
    values: Float[Array, "rows *grid channels"] | np.ndarray,
    stride: int,
    *,
    periodic: bool,
) -> Any:
    """Functions at every `stride`-th point of their grid, along every axis.

    For the coarse levels of a cascade. A periodic grid `j / n` keeps its first point, a
    grid `j / (n - 1)` both its ends.

    **Arguments:**

    - `values`: `(rows, *grid, channels)`.
    - `stride`: must divide the number of intervals: `n`, or `n - 1` if not periodic.
    - `periodic`: which of the two grids it is.
    """
    check_count("stride", stride)
    grid = values.shape[1:-1]
    intervals = [n if periodic else n - 1 for n in grid]
    if not grid or any(n % stride or n // stride < 1 for n in intervals):
        raise ValueError(
            f"`stride` must divide the intervals {intervals} of the grid {grid}, got "
            f"{stride}. Use a divisor, or data on another grid."
        )
    return values[(slice(None), *(slice(None, None, stride) for _ in grid))]
