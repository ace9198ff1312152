from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._custom_types import Key
from .._misc import check_count
from .fourier import analyse, check_grid, refine, synthesise


Activation = Callable[[Array], Array]


class Pointwise(eqx.Module):
    """A dense layer over the channels, the same at every point."""

    weight: Float[Array, "_in _out"]
    bias: Float[Array, " _out"]

    def __init__(self, in_channels: int, out_channels: int, *, key: Key, dtype: Any):
        bound = in_channels**-0.5
        draw = lambda key, shape: jr.uniform(key, shape, dtype, -bound, bound)
        weight_key, bias_key = jr.split(key)
        self.weight = draw(weight_key, (in_channels, out_channels))
        self.bias = draw(bias_key, (out_channels,))

    def __call__(self, x: Float[Array, "*grid _in"]) -> Float[Array, "*grid _out"]:
        y = x @ self.weight
        return y + jnp.broadcast_to(self.bias, y.shape)


class SpectralConv(eqx.Module):
    """A convolution with a kernel of few Fourier modes, a matrix of channels for each.

    `weight` holds real parts and imaginary parts, `(2, *frequencies, in, out)`. With
    `m` modes along an axis, the last axis has the frequencies `0, ..., m - 1` and every
    other one `-(m - 1), ..., m - 1`, in this order. It is real, for optimizers that
    know no complex numbers.
    """

    weight: Float[Array, "2 *_frequencies _in _out"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: Sequence[int],
        *,
        key: Key,
        dtype: Any,
    ):
        frequencies = (*(2 * m - 1 for m in modes[:-1]), modes[-1])
        shape = (2, *frequencies, in_channels, out_channels)
        # As published: uniform between zero and the inverse of their number.
        self.weight = jr.uniform(key, shape, dtype) / (in_channels * out_channels)

    @property
    def modes(self) -> tuple[int, ...]:
        """How many along each axis."""
        *others, last = self.weight.shape[1:-2]
        return (*((size + 1) // 2 for size in others), last)

    def __call__(self, x: Float[Array, "*grid _in"]) -> Float[Array, "*grid _out"]:
        check_grid(x.shape[:-1], self.modes)
        z = analyse(x, self.modes)
        real, imag = self.weight
        # The product of complex numbers, as one of real matrices.
        blocks = jnp.stack([jnp.stack([real, imag]), jnp.stack([-imag, real])])
        z = jnp.einsum("p...i,pq...io->q...o", z, blocks)
        return synthesise(z, x.shape[:-1])


class FNO(eqx.Module):
    """A Fourier neural operator: it maps a function on a grid to another one.

    Written for one function, `(*grid, in_channels)`, channels last; use `jax.vmap` over
    several, as [`Supervised`][] does by itself. One network serves every grid that is
    fine enough for its modes, and gives the same values at common points up to what
    the activation aliases.

    A layer is `activation(convolution(x) + pointwise(x))`, the last one without the
    activation; a pointwise network before them (`lift`) and one after them (`project`)
    change the number of channels.

    ??? cite "Reference"

        Z. Li et al., "Fourier neural operator for parametric partial differential
        equations", ICLR 2021.
    """

    lift: list[Pointwise]
    spectral: list[SpectralConv]
    pointwise: list[Pointwise]
    project: list[Pointwise]
    activation: Activation = eqx.field(static=True)
    coordinates: bool = eqx.field(static=True)
    padding: float = eqx.field(static=True)
    dealias: bool = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        modes: int | Sequence[int],
        num_layers: int = 4,
        lift_sizes: Sequence[int] = (),
        project_sizes: Sequence[int] = (128,),
        activation: Activation = jax.nn.gelu,
        coordinates: bool = True,
        padding: int | float = 0,
        dealias: bool = False,
        key: Key,
        dtype: Any = None,
    ):
        """**Arguments:**

        - `dim`: how many axes the grid has: 1, 2 or 3.
        - `in_channels`, `out_channels`: of the functions.
        - `width`: how many channels the layers have.
        - `modes`: how many Fourier modes a layer keeps along each axis, frequency zero
            included; one number for all axes, or one each. The grid must have
            `2 modes - 1` points.
        - `num_layers`: how many there are.
        - `lift_sizes`, `project_sizes`: the hidden sizes of the pointwise networks
            before and after.
        - `activation`: elementwise.
        - `coordinates`: whether to append the coordinates, from 0 to 1, to the input.
        - `padding`: by what fraction of its length the domain is extended, with zeros,
            at the end of every axis, for functions that are not periodic. With 0 the
            grid is that of a periodic function, `j / n`; with more it has both ends,
            `j / (n - 1)`.
        - `dealias`: whether the activations between layers are evaluated on a grid
            twice finer, and cut off there at the frequencies of the first. Then results
            depend less on the grid; a layer costs several times as much.
        - `key`, `dtype`: of the weights.
        """
        if dim not in (1, 2, 3):
            raise ValueError(f"`dim` must be 1, 2 or 3, got {dim!r}.")
        counts = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "width": width,
            "num_layers": num_layers,
        }
        for name, count in counts.items():
            check_count(name, count)
        if not 0 <= padding < float("inf"):
            raise ValueError(
                f"`padding` must be a fraction of at least 0, got {padding!r}. Use 0 "
                "for periodic functions."
            )
        modes = _each_axis(modes, dim)
        lifted = (in_channels + dim * coordinates, *lift_sizes, width)
        keys = jr.split(key, 4)
        projected = (width, *project_sizes, out_channels)
        dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
        self.lift = _dense("lift_sizes", lifted, keys[0], dtype)
        self.project = _dense("project_sizes", projected, keys[1], dtype)
        self.pointwise = _dense("width", (width,) * (num_layers + 1), keys[2], dtype)
        self.spectral = [
            SpectralConv(width, width, modes, key=k, dtype=dtype)
            for k in jr.split(keys[3], num_layers)
        ]
        self.activation = activation
        self.coordinates = coordinates
        self.padding = float(padding)
        self.dealias = dealias

    @property
    def modes(self) -> tuple[int, ...]:
        """How many Fourier modes a layer keeps along each axis."""
        return self.spectral[0].modes

    def __call__(self, x: Float[Array, "*grid in"]) -> Float[Array, "*grid out"]:
        self._check(x)
        grid = x.shape[:-1]
        if self.coordinates:
            points = _coordinates(grid, ends=self.padding > 0).astype(x.dtype)
            x = jnp.concatenate([x, points], axis=-1)
        x = _stack(self.lift, x, self.activation)
        # The first point after the extension is the first of the next period.
        extra = [max(round(self.padding * (n - 1)) - 1, 0) for n in grid]
        x = jnp.pad(x, [*((0, n) for n in extra), (0, 0)])
        layers = zip(self.spectral, self.pointwise, strict=True)
        for i, (spectral, pointwise) in enumerate(layers):
            x = self._activate(x) if i else x
            x = spectral(x) + pointwise(x)
        x = x[tuple(slice(n) for n in grid)]
        return _stack(self.project, x, self.activation)

    def _activate(self, x: Float[Array, "*grid c"]) -> Float[Array, "*grid c"]:
        if not self.dealias:
            return self.activation(x)
        grid = x.shape[:-1]
        return refine(self.activation(refine(x, [2 * n for n in grid])), grid)

    def _check(self, x: Array) -> None:
        dim, wanted = len(self.modes), self.lift[0].weight.shape[0]
        wanted -= dim * self.coordinates
        if x.ndim != dim + 1 or x.shape[-1] != wanted:
            raise ValueError(
                f"`x` must be one function on a grid of {dim} axes with {wanted} "
                f"channels, of shape `(*grid, {wanted})`, got shape {x.shape}. Append "
                "the axis of channels if it is missing; map the network over the "
                "functions of a batch with `jax.vmap`."
            )
        check_grid(x.shape[:-1], self.modes)


def _each_axis(modes: int | Sequence[int], dim: int) -> tuple[int, ...]:
    each = (modes,) * dim if isinstance(modes, int) else tuple(modes)
    if len(each) != dim:
        raise ValueError(
            f"`modes` must be one number, or one for each of {dim} axes, got {modes!r}."
        )
    for count in each:
        check_count("modes", count)
    return each


def _dense(name: str, sizes: Sequence[int], key: Key, dtype: Any) -> list[Pointwise]:
    for size in sizes:
        check_count(name, size)
    keys = jr.split(key, len(sizes) - 1)
    pairs = zip(sizes[:-1], sizes[1:], keys, strict=True)
    return [Pointwise(i, o, key=k, dtype=dtype) for i, o, k in pairs]


def _stack(layers: list[Pointwise], x: Array, activation: Activation) -> Array:
    for layer in layers[:-1]:
        x = activation(layer(x))
    return layers[-1](x)


def _coordinates(grid: Sequence[int], *, ends: bool) -> Float[Array, "*grid dim"]:
    axes = [jnp.arange(n) / max(n - ends, 1) for n in grid]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
