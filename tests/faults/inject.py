"""Faults at given steps: in the data, the gradient, the loss or the parameters.

All of it are arrays of the recipe, so that runs with and without a fault are of one
program, and may be compared bit for bit until it fires.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

import opifex as opx


@jax.custom_vjp
def scaled_gradient(x, factor):
    """`x`, with its gradient multiplied by `factor`."""
    del factor
    return x


scaled_gradient.defvjp(
    lambda x, factor: (x, factor), lambda factor, g: (factor * g, jnp.zeros(()))
)


class Firing(opx.AbstractSampler):
    """The batch of another sampler, and as one more set whether a fault fires."""

    sampler: opx.AbstractSampler
    steps: Array

    def init(self, key):
        return self.sampler.init(key)

    def batch(self, state, key, step):
        fires = jnp.any(step == self.steps).astype(float)
        return {**self.sampler.batch(state, key, step), "fires": fires[None, None]}

    def resample(self, state, problem, model, key):
        return self.sampler.resample(state, problem, model, key)


class Faulty(opx.AbstractResidualProblem):
    """Another problem, in which `value` spoils what `where` names."""

    problem: opx.AbstractResidualProblem
    value: Array
    where: str = eqx.field(static=True)

    def residuals(self, model, batch):
        points = dict(batch)
        factor = jnp.where(points.pop("fires")[0, 0] > 0, self.value, 1.0)
        if self.where == "data":
            points = {name: factor * x for name, x in points.items()}
        if self.where == "gradient":
            spoil = lambda x: scaled_gradient(x, factor) if eqx.is_array(x) else x
            model = jax.tree.map(spoil, model)
        residuals = self.problem.residuals(model, points)
        if self.where == "loss":
            residuals = {name: factor * r for name, r in residuals.items()}
        return residuals


class Spoiling(eqx.Module):
    """The chunk of a recipe, in which the parameters that a step proposes are spoiled
    after the optimizer is done."""

    recipe: opx.Recipe
    steps: Array
    value: Array

    def __call__(self, start):
        recipe = self.recipe

        def step(state):
            batch = recipe.sampler.batch(None, state.key_for("batch"), state.step)
            proposed, info = opx.train_step(recipe.problem, recipe.optim, state, batch)
            factor = jnp.where(jnp.any(state.step == self.steps), self.value, 1.0)
            spoil = lambda x: factor * x if eqx.is_inexact_array(x) else x
            model = jax.tree.map(spoil, proposed.model)
            proposed = eqx.tree_at(lambda s: s.model, proposed, model)
            return opx.recover(recipe.recovery, state, proposed, info)

        state, infos = opx.filter_scan(step, start, length=recipe.steps)
        state = opx.anchor(recipe.recovery, start, state)
        return opx.resample(recipe.sampler, recipe.problem, state), infos
