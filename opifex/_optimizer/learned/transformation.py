import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..._custom_types import Count, Scalar
from .network import check_weights, local_features, shared_features, Weights
from .safeguard import Trust
from .storage import load_weights


# Those of Adam first.
FAST, SECOND, EPS = 0.9, 0.999, 1e-8
SLOW, RECENT_SECOND = 0.99, 0.95


class LearnedState(eqx.Module):
    """Averages of the gradient and of its square, each a tree like the parameters."""

    count: Count
    fast: PyTree
    slow: PyTree
    second: PyTree
    recent_second: PyTree
    trust: Trust


def MetaOptimizer(
    learning_rate: int | float = 1e-3,
    weights: Weights | None = None,
    safeguard: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """A learned optimizer: Adam, whose steps a small network corrects.

    The network sees, of each parameter, the gradient, two momenta and two second
    moments, in units in which the scale of the loss is not seen; and, of the run, the
    number of steps, how well the gradient agrees with the momenta, and how the loss
    changes. It answers with a factor for the step of that parameter, between 1/30 and
    30, and with shares of the gradient and of a slower momentum in its direction. All
    parameters share it; if its weights are zero, it is `optax.adam(learning_rate)`.

    `update` takes `value`, the loss, besides, as `train_step` hands it over. Without
    it there is no safeguard.

    **Arguments:**

    - `learning_rate`: of the Adam that is corrected. That of the shipped weights is the
        default; another scales their steps.
    - `weights`: from [`meta_train`][] or [`load_weights`][]; those that are shipped, by
        default.
    - `safeguard`: whether to fall back, by degrees, to Adam when the loss leaps, or its
        mean over 50 steps rises above the best so far. It heals with every new best.

    **Raises:** `ValueError` for a learning rate that is not positive and finite, and
    for weights of other shapes; `TypeError` for what is no `Weights`.

    ??? cite "References"

        L. Metz, C. D. Freeman, J. Harrison, N. Maheswaranathan and J. Sohl-Dickstein,
        "Practical tradeoffs between memory, compute, and performance in learned
        optimizers", Conference on Lifelong Learning Agents, 2022 (the kind of network
        and of features; the symmetry under signs, and Adam at zero, are from here).
    """
    check_rate("learning_rate", learning_rate)
    weights = load_weights() if weights is None else weights
    check_weights(weights)
    return learned(weights, learning_rate, safeguard)


def learned(
    weights: Weights, learning_rate: int | float, safeguard: bool
) -> optax.GradientTransformationExtraArgs:
    """[`MetaOptimizer`][] without checks, for weights that are being trained."""

    def init(params) -> Any:
        _check_real(params)
        zeros = lambda: jtu.tree_map(jnp.zeros_like, params)
        count = jnp.zeros((), jnp.int32)
        return LearnedState(count, zeros(), zeros(), zeros(), zeros(), Trust.start())

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "`params` must not be None: `MetaOptimizer` looks at the parameters. "
                "Call `update(grads, state, params)`."
            )
        value, trust = extra.get("value"), state.trust
        trend = jnp.zeros(())
        if value is not None:
            trust, trend = trust.saw(jnp.asarray(value))
        grad, unravel = ravel_pytree(updates)
        old = [ravel_pytree(t)[0] for t in _averages(state)]
        new = _averaged(grad, old)
        belief = trust.trust if safeguard else jnp.ones(())
        direction = _direction(
            weights,
            state.count + 1,
            (grad, *old[:2], *new),
            ravel_pytree(params)[0],
            trend,
            belief,
        )
        step = unravel(-learning_rate * direction)
        fast, slow, second, recent = [unravel(x) for x in new]
        count = state.count + 1
        return step, LearnedState(count, fast, slow, second, recent, trust)

    return optax.GradientTransformationExtraArgs(init, update)


def check_rate(argument: str, value: int | float) -> None:
    """Raises unless `value` is positive and finite."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(
            f"`{argument}` must be positive and finite, got {value!r}. Try 1e-3."
        )


def _averages(state: LearnedState) -> tuple[PyTree, ...]:
    return state.fast, state.slow, state.second, state.recent_second


def _averaged(grad: Array, old: list[Array]) -> list[Array]:
    decays = (FAST, SLOW, SECOND, RECENT_SECOND)
    terms = (grad, grad, grad**2, grad**2)
    return [d * a + (1 - d) * x for d, a, x in zip(decays, old, terms, strict=True)]


def _direction(
    weights: Weights,
    count: Count,
    averages: tuple[Array, ...],
    params: Float[Array, " n"],
    trend: Scalar,
    trust: Scalar,
) -> Float[Array, " n"]:
    """The step in units of the learning rate, before its sign."""
    grad, old_fast, old_slow, fast, slow, second, recent = averages
    steps, trust = count.astype(grad.dtype), trust.astype(grad.dtype)
    unbias = lambda x, decay: x / (1 - decay**steps)
    size = jnp.sqrt(unbias(second, SECOND))
    recent = jnp.sqrt(unbias(recent, RECENT_SECOND))
    unit = size + EPS
    gradient, slow = grad / unit, unbias(slow, SLOW) / unit
    adam = unbias(fast, FAST) / unit
    local = local_features(gradient, adam, slow, size, recent, params)
    shared = shared_features(count, grad, old_fast, old_slow, trend)
    log_factor, of_gradient, of_slow = weights(local, shared)
    corrected = adam + trust * (of_gradient * gradient + of_slow * slow)
    return jnp.exp(trust * log_factor) * corrected


def _check_real(params: PyTree) -> None:
    for path, leaf in jtu.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"`MetaOptimizer` trains real parameters, got {leaf.dtype} at "
                f"`params{jtu.keystr(path)}`. Split complex ones into real and "
                "imaginary parts, or use `optax.adam`."
            )
