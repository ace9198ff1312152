import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ..._custom_types import Key
from ..._problem.conditions import data_at, Dirichlet
from ...core.training.physics_configs import BoundaryConfig


_POINTS = 64  # on each piece of a boundary that is named


def boundary_values(config: BoundaryConfig, key: Key) -> tuple[Array, Array] | None:
    """Points on the boundary and the values there; `None` if no geometry is given."""
    if config.domain is None:
        return None
    if config.enforce:
        raise NotImplementedError(
            "`boundary_config.enforce` is not there yet for the documented trainers. "
            "Give a `weight`, or use `opifex.PDE`, whose conditions can be exact."
        )
    points, values = [], []
    for i, condition in enumerate(config.conditions):
        if not isinstance(condition, Dirichlet) or _is_special(condition):
            raise NotImplementedError(
                f"`boundary_config.conditions[{i}]` is {condition!r}; the documented "
                "trainers know plain Dirichlet values of one field so far. Use "
                "`opifex.PDE` for others."
            )
        piece = config.domain.boundary(condition.boundary)
        where = piece.sample(_POINTS, jr.fold_in(key, i))
        value = jnp.asarray(data_at(condition.value, where), where.dtype)
        points.append(where)
        values.append(jnp.broadcast_to(value, (_POINTS,)))
    return jnp.concatenate(points), jnp.concatenate(values)[:, None]


def _is_special(condition: Dirichlet) -> bool:
    return condition.weight != 1.0 or condition.field is not None
