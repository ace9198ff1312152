from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._custom_types import Key, Terms
from .base import AbstractProblem, Aux
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
    """

    loss: RowLoss = mse
    apply: Callable = batched
    predict: Predict = _plainly
    physics: PhysicsInformed | None = None
    rows: dict[str, AbstractRowTerm] = eqx.field(default_factory=dict)
    custom: dict[str, Callable] = eqx.field(default_factory=dict)
    weights: dict[str, float | int] = eqx.field(default_factory=dict)

    def terms(self, model, batch, key):
        if self.physics is None:
            terms, aux = self._fitted(model, batch, key)
        else:
            terms, aux = self.physics.terms(model, batch, key)
            terms, aux = dict(terms), Aux(counts=dict(aux.counts))
            if self.rows:
                more, _ = self._on_data(model, batch["data"], key)
                terms |= {name: more[name] for name in self.rows}
        terms |= self._custom(model, batch)
        weighted = {n: self.weights.get(n, 1.0) * v for n, v in terms.items()}
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
                apply = self.apply if name == "data" else self._noiseless
                fit = Supervised(self.loss, apply)
                misfit, valid = fit.least_squares(model, pairs, key)
                residuals[name] = misfit["data"]
                weights[name] = valid.get("data", 1.0)
        weight = lambda name: self.weights.get(name, 1.0) * weights.get(name, 1.0)
        return residuals, {name: weight(name) for name in residuals}

    def _fitted(self, model, batch, key) -> tuple[Terms, Aux]:
        terms, aux = self._on_data(model, batch["data"], key)
        of_values = Supervised(self.loss, self._noiseless)
        for name, pairs in batch.items():
            if name != "data":
                terms[name] = of_values.terms(model, pairs, key)[0]["data"]
        return terms, aux

    def _on_data(self, model: Any, pairs: Pairs, key: Key) -> tuple[Terms, Aux]:
        """The terms of the data, all of them means over the rows that are valid."""

        def of_rows(term):
            see = lambda x: self.predict(model, x)
            return lambda p, target: term(Seen(see, pairs.inputs, p, target))

        rows = {name: of_rows(term) for name, term in self.rows.items()}
        apply = self.apply if self.physics is None else self._noiseless
        fit = Supervised(self.loss, apply, rows)
        terms, aux = fit.terms(model, pairs, key)
        return terms | aux.metrics, Aux(aux.counts, {}, aux.model)

    def _noiseless(self, model: Any, inputs: Any, key: Key) -> tuple[Any, Any]:
        del key
        return self.predict(model, inputs), model

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
