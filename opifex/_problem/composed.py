from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._custom_types import Key, Terms
from .at_points import AtPoints
from .base import AbstractProblem, Aux, mean_squares
from .extra_terms import AbstractRowTerm, Seen
from .physics_informed import PhysicsInformed
from .supervised import batched, mse, Pairs, RowLoss, Supervised


Predict = Callable[[Any, Any], Array]


def _plainly(model: Any, inputs: Any) -> Array:
    return model(inputs)


class Composed(AbstractProblem[Any, dict[str, Any]]):
    """Data, points with given values, an equation, and further terms in one loss.

    The batch is a dictionary. `"data"` holds [`Pairs`][] that are trained on; any other
    [`Pairs`][] (`"boundary"`, `"initial"`) are likewise a term each. With `physics`,
    `"interior"` holds its points, and it has all [`Pairs`][].

    **Arguments:**

    - `loss`, `apply`: as of [`Supervised`][].
    - `predict`: what the model answers to inputs, without noise, and changing nothing.
    - `physics`: an equation.
    - `rows`: further terms, by name, of the rows of `"data"`.
    - `custom`: further terms, by name: functions of the model as a function of a batch,
        of the inputs and of the targets (`None` where there are none), that give a
        number or one number a row.
    - `weights`: of the terms, by name; one, unless given. Those of an equation are its
        own.
    - `conditions`: on the boundary of a domain, with their points; with `physics` they
        are its own. The weights of `"boundary"` and `"initial"` hold for them too.
    - `multiplied`: names of `rows` that are constraints: the means of their components,
        which have signs, are terms too, for [`Multipliers`][] to weight.
    """

    loss: RowLoss = mse
    apply: Callable = batched
    predict: Predict = _plainly
    physics: PhysicsInformed | None = None
    rows: dict[str, AbstractRowTerm] = eqx.field(default_factory=dict)
    custom: dict[str, Callable] = eqx.field(default_factory=dict)
    weights: dict[str, float | int] = eqx.field(default_factory=dict)
    conditions: AtPoints | None = None
    multiplied: tuple[str, ...] = eqx.field(static=True, default=())

    @property
    def quiet(self) -> "Composed":
        """The same without noise, changing nothing, and without what has a sign."""
        return replace(self, apply=_Noiseless(self.predict), multiplied=())

    def terms(self, model, batch, key):
        if self.physics is None:
            terms, aux = self._fitted(model, batch, key)
        else:
            terms, aux = self.physics.terms(model, batch, key)
            terms, aux = dict(terms), Aux(counts=dict(aux.counts))
            if self.rows:
                more, _ = self._on_data(model, batch["data"], key)
                terms |= {name: v for name, v in more.items() if name != "data"}
        terms |= self._custom(model, batch)
        weighted = {n: self._weight(n) * v for n, v in terms.items()}
        return weighted, aux

    def least_squares(self, model, batch, key):
        others = [*self.rows, *self.custom]
        if others:
            raise TypeError(
                f"`optim` looks at residuals, but the terms {others} are not known to "
                "be means of squares. Leave them out, or use an optimizer such as "
                "`ssbroyden`."
            )
        residuals, weights = {}, {}
        if self.physics is not None:
            residuals, weights = self.physics.least_squares(model, batch, key)
        else:
            for name, pairs in batch.items():
                apply = self.apply if name == "data" else _Noiseless(self.predict)
                fit = Supervised(self.loss, apply)
                misfit, valid = fit.least_squares(model, pairs, key)
                residuals[name] = misfit["data"]
                weights[name] = valid.get("data", 1.0)
            if self.conditions is not None:
                at = lambda point: self.predict(model, point[None])[0]
                residuals |= self.conditions.residuals(at)
        weight = lambda name: self._weight(name) * weights.get(name, 1.0)
        return residuals, {name: weight(name) for name in residuals}

    def _weight(self, name: str) -> float | int:
        own = self.weights.get(name, 1.0)
        head = name.split("/")[0]
        of_condition = self.conditions is not None and head in ("boundary", "initial")
        return self.weights.get(head, own) if of_condition else own

    def _fitted(self, model, batch, key) -> tuple[Terms, Aux]:
        terms, aux = self._on_data(model, batch["data"], key)
        of_values = Supervised(self.loss, _Noiseless(self.predict))
        for name, pairs in batch.items():
            if name != "data":
                terms[name] = of_values.terms(model, pairs, key)[0]["data"]
        if self.conditions is not None:
            at = lambda point: self.predict(model, point[None])[0]
            terms |= mean_squares(self.conditions.residuals(at))[0]
        return terms, aux

    def _on_data(self, model: Any, pairs: Pairs, key: Key) -> tuple[Terms, Aux]:
        """The terms of the data, all of them means over the rows that are valid."""

        def of_rows(term):
            see = lambda x: self.predict(model, x)
            return lambda p, target: term(Seen(see, pairs.inputs, p, target))

        rows = {name: of_rows(term) for name, term in self.rows.items()}
        for name in self.multiplied:
            signed = of_rows(self.rows[name].components)  # type: ignore[attr-defined]
            rows |= _columns(excess_of(name), signed, pairs.targets)
        apply = self.apply if self.physics is None else _Noiseless(self.predict)
        fit = Supervised(self.loss, apply, rows)
        terms, aux = fit.terms(model, pairs, key)
        return terms | aux.metrics, Aux(aux.counts, {}, aux.model)

    def _custom(self, model: Any, batch: dict[str, Any]) -> Terms:
        if not self.custom:
            return {}
        pairs = batch.get("data")
        inputs = batch["interior"] if pairs is None else pairs.inputs
        targets = None if pairs is None else pairs.targets
        see = lambda x: self.predict(model, x)
        return {
            name: _mean(name, fn(see, inputs, targets), inputs.shape[0], pairs)
            for name, fn in self.custom.items()
        }


class _Noiseless(eqx.Module):
    predict: Predict

    def __call__(self, model: Any, inputs: Any, key: Key) -> tuple[Any, Any]:
        del key
        return self.predict(model, inputs), model


def excess_of(name: str) -> str:
    """What the terms with a sign begin with, of the constraint of that name."""
    return f"excess/{name.split('/', 1)[-1]}"


def _columns(name: str, signed: Callable, targets: Array) -> dict[str, RowLoss]:
    """A function a component: its name, numbered if there are several."""
    num = jax.eval_shape(signed, targets, targets).shape[1]
    column = lambda i: lambda p, target: signed(p, target)[:, i]
    if num == 1:
        return {name: column(0)}
    return {f"{name}/{i}": column(i) for i in range(num)}


def _mean(name: str, value: Any, num_rows: int, pairs: Pairs | None) -> Array:
    value = jnp.asarray(value)
    valid = None if pairs is None else pairs.valid
    if value.shape == () and valid is None:
        return value
    if value.shape != (num_rows,):
        wanted = "one number a row" if valid is not None else "a number, or one a row"
        raise ValueError(
            f"The loss {name!r} must give {wanted} of the batch, of shape "
            f"{(num_rows,)}, got shape {value.shape}. (A number alone would count the "
            "rows twice that fill up the last batch: or choose a `batch_size` that "
            "divides the number of rows.)"
        )
    if valid is None:
        return jnp.mean(value)
    total = jnp.sum(jnp.where(valid, value, 0))
    return total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)
