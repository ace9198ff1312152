"""Unknown numbers in an equation, found along with its solution."""

import abc
import inspect
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._misc import check_finite, Frozen


class AbstractCoefficient(eqx.Module):
    """A number, or an array of numbers, that is trained."""

    @property
    @abc.abstractmethod
    def value(self) -> Float[Array, "..."]:
        """What the equation is given."""


class Free(AbstractCoefficient):
    """Any number at all; begins at `start`, whose type it has if that is an array of
    floats; else it is a default float."""

    raw: Float[Array, "..."]

    def __init__(self, start: ArrayLike):
        self.raw = _start("start", start)

    @property
    def value(self):
        return self.raw


class Positive(AbstractCoefficient):
    """A positive number, `scale * exp(raw)`; begins at `start`, which is its scale.

    So steps are relative: a coefficient of 1e-3 moves as easily as one of 1.
    """

    raw: Float[Array, "..."]
    scale: Frozen

    def __init__(self, start: ArrayLike):
        scale = _start("start", start)
        if not _known(scale > 0):
            raise ValueError(f"`start` must be positive, got {start!r}.")
        self.raw, self.scale = jnp.zeros_like(scale), Frozen(scale)

    @property
    def value(self):
        return self.scale.value * jnp.exp(self.raw)


class Bounded(AbstractCoefficient):
    """A number between two bounds, by a logistic function; begins at `start`."""

    raw: Float[Array, "..."]
    lower: float | int = eqx.field(static=True)
    upper: float | int = eqx.field(static=True)

    def __init__(
        self,
        lower: float | int,
        upper: float | int,
        start: ArrayLike | None = None,
    ):
        """**Arguments:**

        - `lower`, `upper`: the bounds.
        - `start`: inside of them; their middle, unless given.
        """
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
            raise ValueError(
                f"`lower` must be less than `upper`, and both finite, got {lower!r} "
                f"and {upper!r}."
            )
        begin = _start("start", (lower + upper) / 2 if start is None else start)
        share = (begin - lower) / (upper - lower)
        if not _known((share > 0) & (share < 1)):
            raise ValueError(
                f"`start` must lie between {lower!r} and {upper!r}, got {start!r}."
            )
        self.raw = jnp.log(share / (1 - share))
        self.lower, self.upper = lower, upper

    @property
    def value(self):
        return self.lower + (self.upper - self.lower) * jax.nn.sigmoid(self.raw)


class Inverse(eqx.Module):
    """A network together with the unknown coefficients of its equation.

    It is the model of an inverse problem: [`PDE`][] hands each coefficient to the
    equations that have a keyword argument of that name.

    **Arguments:**

    - `network`: maps a point to the fields.
    - `coefficients`: by name, [`Free`][], [`Positive`][] or [`Bounded`][].
    """

    network: Callable
    coefficients: dict[str, AbstractCoefficient]

    def __check_init__(self):
        for name, value in self.coefficients.items():
            if not isinstance(value, AbstractCoefficient):
                raise TypeError(
                    f"`coefficients[{name!r}]` must be `Free`, `Positive` or "
                    f"`Bounded`, got {value!r}."
                )

    def __call__(self, point: Float[Array, " dim"]) -> Array:
        return self.network(point)

    @property
    def values(self) -> dict[str, Array]:
        """The coefficients, by name."""
        return {name: c.value for name, c in self.coefficients.items()}


def parted(model: Any) -> tuple[Any, dict[str, Array]]:
    """The network of a model, and its coefficients, of which there may be none."""
    if isinstance(model, Inverse):
        return model.network, model.values
    return model, {}


def taken(function: Callable, coefficients: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `coefficients` that are keyword arguments of a function."""
    own = _parameters(function)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own):
        return dict(coefficients)
    names = {p.name for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {name: value for name, value in coefficients.items() if name in names}


def needed(function: Callable) -> list[str]:
    """The keyword arguments that a function has no default for."""
    own = [p for p in _parameters(function) if p.default is inspect.Parameter.empty]
    return [p.name for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _parameters(function: Callable) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of what is not written in Python
        return []


def separately(
    network: optax.GradientTransformation, coefficients: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Two optimizers for the two parts of an [`Inverse`][] model, each with a learning
    rate of its own."""

    def labels(params: PyTree) -> PyTree[str]:
        if not isinstance(params, Inverse):
            raise TypeError(
                "`separately` is for an `Inverse` model, got parameters of "
                f"{type(params).__name__}. Wrap the network: `Inverse(network, ...)`."
            )
        name = lambda label: lambda tree: jtu.tree_map(lambda _: label, tree)
        return eqx.tree_at(
            lambda m: (m.network, m.coefficients),
            params,
            (
                name("network")(params.network),
                name("coefficients")(params.coefficients),
            ),
        )

    parts: dict[Hashable, optax.GradientTransformation] = {
        "network": network,
        "coefficients": coefficients,
    }
    return optax.partition(parts, labels)


def _known(condition: Array) -> bool:
    """Whether it holds everywhere, as far as is known while JAX is tracing."""
    return isinstance(condition, Tracer) or bool(condition.all())


def _start(name: str, value: ArrayLike) -> Array:
    given = getattr(value, "dtype", None)
    inexact = given is not None and jnp.issubdtype(given, jnp.floating)
    value = jnp.asarray(value, given if inexact else jnp.result_type(float))
    check_finite(name, value.reshape(-1))
    return value
