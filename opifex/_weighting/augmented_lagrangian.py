import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Inexact

from .._custom_types import Scalar
from .._misc import check_count, check_number
from .base import AbstractWeighting, Needs, Pointwise
from .named import check_name_list, check_names, num_points


class _AugmentedLagrangianState(eqx.Module):
    mu: Scalar
    multipliers: dict[str, Inexact[Array, "..."]]


class AugmentedLagrangian(AbstractWeighting[_AugmentedLagrangianState]):
    """Terms that are constraints: their residuals `r` shall be zero, at every point.

    A constraint enters the loss as the mean over its points of `mu |r|^2 + lambda r`.
    Every `every` steps, beginning with the second time that is due (the model must have
    been trained for the first `lambda`), `lambda <- lambda + 2 mu r` and
    `mu <- min(beta mu, max_mu)`. The other terms are left alone. With complex residuals
    the second part is `Re(conj(lambda) r)`.

    The loss is no measure of success, and may be negative: judge a run by its terms.

    **Arguments:**

    - `names`: the terms that are constraints.
    - `mu`: the penalty to begin with.
    - `beta`: by which it grows.
    - `max_mu`: its bound.
    - `every`: steps between two updates: long enough for the optimizer to come close to
        the minimum in between.
    - `pointwise`: whether there is a multiplier at every point, which must then stay
        what they are (use [`Fixed`][]), or one for each term, for the mean of `r`.

    ??? cite "Reference"

        L. Lu, R. Pestourie, W. Yao, Z. Wang, F. Verdugo and S. G. Johnson,
        "Physics-informed neural networks with hard constraints for inverse design",
        SIAM Journal on Scientific Computing 43(6), 2021, section 2.4.3; D. P.
        Bertsekas, "Constrained optimization and Lagrange multiplier methods", 1982.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    mu: int | float = 1.0
    beta: int | float = 2.0
    max_mu: int | float = 1e4
    every: int = eqx.field(static=True, default=1000)
    pointwise: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        check_name_list("names", self.names, least=1)
        check_number("mu", self.mu, 0, open_low=True)
        check_number("beta", self.beta, 1)
        check_number("max_mu", self.max_mu, self.mu)
        check_count("every", self.every)

    @property
    def needs(self) -> frozenset[Needs]:
        fixed = {Needs.FIXED_POINTS} if self.pointwise else set()
        return frozenset({Needs.RESIDUALS} | fixed)

    def init(self, terms):
        check_names(self.names, terms)

        def zero(name):
            shape = (num_points(terms, name),) if self.pointwise else ()
            return jnp.zeros(shape, terms[name].dtype)

        mu = jnp.full((), self.mu, float)
        return _AugmentedLagrangianState(mu, {name: zero(name) for name in self.names})

    def at_points(self, state, residuals, batch):
        del batch
        check_names(self.names, residuals)
        weights = {name: state.mu for name in self.names}
        return Pointwise(weights, dict(state.multipliers))

    def metrics(self, state):
        return {"mu/" + "+".join(self.names): state.mu}

    def update(self, state, observed):
        def raised(name, multiplier):
            r = observed.residuals[name].astype(multiplier.dtype)
            return raised_by(multiplier, state.mu, r if self.pointwise else jnp.mean(r))

        new = _AugmentedLagrangianState(
            grown(state.mu, self.beta, self.max_mu),
            {name: raised(name, x) for name, x in state.multipliers.items()},
        )
        begun = observed.step > 0
        return jtu.tree_map(lambda n, o: jnp.where(begun, n, o), new, state)


def raised_by(
    multiplier: Inexact[Array, "..."], mu: Scalar, r: Array
) -> Inexact[Array, "..."]:
    """The next multiplier of a constraint that left `r` over: the estimate to first
    order at the minimum of `mu |r|^2 + multiplier r` (Bertsekas, 1982, chapter 2)."""
    return multiplier + (2 * mu).astype(multiplier.dtype) * r


def grown(mu: Scalar, beta: int | float, max_mu: int | float) -> Scalar:
    """The next penalty."""
    return jnp.minimum(beta * mu, max_mu)
