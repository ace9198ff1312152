"""Equations as on paper."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from .._custom_types import Key
from .._misc import unknown_name
from ._wanted import Wanted
from .base import AbstractDerivatives
from .choose import resolve
from .field import Field, RESERVED


Residuals = Inexact[Array, " points"] | tuple[Inexact[Array, " points"], ...]


class Residual(eqx.Module):
    """An equation: what it leaves over, for a network at points. See [`residual`][]."""

    function: Callable[..., Any] = eqx.field(static=True)
    coords: tuple[str, ...] = eqx.field(static=True)
    fields: tuple[str, ...] = eqx.field(static=True)
    derivatives: AbstractDerivatives | str = "auto"

    def __check_init__(self):
        resolve(self.derivatives)
        for name in self.coords:
            if name in RESERVED or not name.isidentifier() or name.startswith("_"):
                raise ValueError(
                    f"`coords` must not name a coordinate {name!r}: use an identifier "
                    f"other than {sorted(RESERVED)}."
                )
        names = (*self.fields, *self.coords)
        if len(set(names)) < len(names) or not self.fields or not self.coords:
            raise ValueError(
                "`coords` and `fields` must be different names, one or more of each, "
                f"got {self.coords} and {self.fields}."
            )
        takes = _num_positional(self.function)
        if takes is not None and takes != len(names):
            raise ValueError(
                f"`{self.name}` must take the fields and then the coordinates, "
                f"({', '.join(names)}), which are {len(names)}; it takes {takes}. "
                "Parameters of the equation come after a `*`."
            )

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "the equation")

    def __call__(
        self,
        model: Callable[[Array], Array],
        points: Float[Array, "points dim"],
        *,
        key: Key | None = None,
        **parameters: Any,
    ) -> Residuals:
        """What the equation leaves over.

        **Arguments:**

        - `model`: maps one point `(dim,)` to the fields `(fields,)`; a number will do
            where there is one field.
        - `points`: one a row, its coordinates in the order of `coords`.
        - `key`: for derivatives that are random.
        - `parameters`: keyword arguments of the equation.

        **Returns:** `(points,)`, or a tuple of such for a system.
        """
        self._check(points, parameters)
        wanted = sorted(self.wanted(points, **parameters), key=repr)
        method = resolve(self.derivatives)
        if wanted:
            value, found = method(model, points, wanted, key)
        else:
            value, found = jax.vmap(model, out_axes=-1)(points), {}
        value = self._per_field(value)
        found = {w: self._per_field(x) for w, x in found.items()} | {(): value}
        fields = [
            Field(self.coords, lambda w, i=i: found[w][i])
            for i in range(len(self.fields))
        ]
        out = self.function(*fields, *points.T, **parameters)
        return self._checked(out, points.shape[:1])

    def wanted(self, points: Any, **parameters: Any) -> set[Wanted]:
        """The derivatives that the equation asks for, by an evaluation without
        arithmetic."""
        asked: set[Wanted] = set()

        def run(points):
            def get(wanted):
                asked.add(wanted)
                return jnp.zeros(points.shape[:1], points.dtype)

            fields = [Field(self.coords, get) for _ in self.fields]
            return _as_tuple(self.function(*fields, *points.T, **parameters))

        eqx.filter_eval_shape(run, points)
        return asked - {()}

    def _per_field(self, x: Array) -> Array:
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2 or x.shape[0] != len(self.fields):
            raise ValueError(
                f"`model` must map a point to {len(self.fields)} numbers, the fields "
                f"{self.fields} of `{self.name}`, got shape {x.shape[:-1]}."
            )
        return x

    def _check(self, points: Any, parameters: dict[str, Any]) -> None:
        if points.ndim != 2 or points.shape[1] != len(self.coords):
            raise ValueError(
                f"`points` must have a column for each of the coordinates "
                f"{self.coords} of `{self.name}`, got shape {points.shape}."
            )
        known = _parameter_names(self.function)
        for name in parameters:
            if known is not None and name not in known:
                raise TypeError(unknown_name(f"parameters of {self.name}", name, known))

    def _checked(self, out: Any, shape: tuple[int, ...]) -> Residuals:
        parts = tuple(map(_as_array, _as_tuple(out)))
        for part in parts:
            if part.shape != shape:
                raise ValueError(
                    f"`{self.name}` must return one number a point, of shape {shape}, "
                    f"or a tuple of such, got shape {part.shape}."
                )
        return parts if isinstance(out, (tuple, list)) else parts[0]


def residual(
    coords: str,
    *,
    fields: str = "u",
    derivatives: AbstractDerivatives | str = "auto",
) -> Callable[[Callable[..., Any]], Residual]:
    """Makes an equation out of a function of fields and coordinates.

    ```python
    @opx.residual("x t")
    def burgers(u, x, t, *, nu=0.01):
        return u.t + u * u.x - nu * u.xx
    ```

    Which derivatives it needs is found out by one evaluation without arithmetic.

    **Arguments:**

    - `coords`: the names of the coordinates, in the order of the columns of the points.
    - `fields`: the names of the outputs of the network.
    - `derivatives`: how they are taken: "auto", another name out of `DERIVATIVES`, or
        an instance such as [`STDE`][]`(16)`.

    **Returns:** a decorator. The function gets the fields, each a [`Field`][], then the
    coordinates as arrays `(points,)`, then its own keyword arguments, and returns what
    the equation leaves over, or a tuple for a system.
    """
    names = tuple(coords.split()), tuple(fields.split())
    return lambda function: Residual(function, *names, derivatives)


def _as_tuple(out: Any) -> tuple[Any, ...]:
    out = tuple(out) if isinstance(out, (tuple, list)) else (out,)
    return tuple(x.value if isinstance(x, Field) else x for x in out)


def _as_array(x: Any) -> Array:
    return jnp.asarray(x)


def _num_positional(function: Callable) -> int | None:
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return sum(kind not in keyword for kind in kinds)


def _parameter_names(function: Callable) -> Sequence[str] | None:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
