"""The documented door to physics-informed losses."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..._custom_types import Key, Scalar, Terms
from ..._misc import check_number, unknown_name
from ..._problem.at_points import at_points, setting_of
from ..._problem.conditions import AbstractCondition, Setting
from ..._problem.conservation import Conserved
from ..._problem.pde import PDE
from ..._problem.physics_informed import PhysicsInformed
from ..._problem.supervised import Pairs
from ..._weighting.annealing import LearningRateAnnealing
from ..._weighting.base import AbstractWeighting
from ..._weighting.grad_norm import GradNorm
from ..._weighting.grad_norm_balance import GradNormBalance
from ..._weighting.ntk import NTK
from ..._weighting.relobralo import ReLoBRaLo
from ..._weighting.soft_adapt import SoftAdapt
from ..._weighting.static import Static
from ...derivatives import Residual
from ...geometry.base import AbstractDomain
from ...zoo import BENCHMARKS, make_benchmark
from .._strict import strict
from .constraints import CONSTRAINTS


__all__ = [
    "PhysicsInformedLoss",
    "PhysicsLossConfig",
    "WEIGHTINGS",
]


def __dir__():
    return __all__


WEIGHTINGS: dict[str, Callable[[], AbstractWeighting]] = {
    "gradnorm": GradNorm,
    "grad_norm_balance": GradNormBalance,
    "learning_rate_annealing": lambda: LearningRateAnnealing("interior"),
    "ntk": NTK,
    "relobralo": ReLoBRaLo,
    "softadapt": SoftAdapt,
}


@strict
@dataclasses.dataclass(frozen=True)
class PhysicsLossConfig:
    """How the parts of a physics-informed loss are put together.

    **Arguments:**

    - `physics_weight`: of the equation, and of the constraints beside it.
    - `boundary_weight`, `initial_weight`, `data_weight`: of the misfit to boundary
        values, to initial values and to data.
    - `adaptive_weighting`: whether the parts are balanced anew during training.
    - `weighting`: by which method, out of `WEIGHTINGS`.
    """

    physics_weight: float = 1.0
    boundary_weight: float = 1.0
    initial_weight: float = 1.0
    data_weight: float = 1.0
    adaptive_weighting: bool = False
    weighting: str = "grad_norm_balance"

    def __post_init__(self):
        for name in _PARTS:
            check_number(name, getattr(self, name), 0)
        if self.weighting not in WEIGHTINGS:
            raise ValueError(unknown_name("weighting", self.weighting, WEIGHTINGS))


# The field of the configuration, and the name of the terms that it weights.
_PARTS = {
    "physics_weight": "interior",
    "boundary_weight": "boundary",
    "initial_weight": "initial",
    "data_weight": "data",
}


class PhysicsInformedLoss:
    """The loss of a physics-informed network, from an equation and what is known.

    **Arguments:**

    - `pde_residual`: a function `(model_fn, *coordinates)` of one point, an equation
        from [`residual`][], or the name of a problem that `opifex list` prints.
    - `config`: the weights of its parts.
    - `constraints`: names out of `CONSTRAINTS` ("density_positivity", "normalization",
        ...), or functions of the values `(points, fields)` at the interior points and
        of these points, by name.
    - `batched`: whether models map `(n, dim)` to `(n, fields)`; else one point.
    - `domain`: the geometry that the next two are about; with time, it is `space *
        Interval(t0, t1)`.
    - `conditions`: on its boundary, such as `NeumannBC("left", 0.0)`: each is a term of
        the loss, at `num_points` points that are drawn once, by `key`. They are
        weighted as boundary and initial values are. Exact ones are for
        [`BoundaryConfig`][].
    - `conserved`: laws, from `opifex.Conserved`, `opifex.mass` and the like, with
        weights of their own.

    **Attributes:**

    - `problem`: the same as a problem for [`train_step`][] and [`Recipe`][].
    - `weighting`: how its terms are weighted during training.
    """

    problem: PhysicsInformed
    weighting: AbstractWeighting
    config: PhysicsLossConfig

    def __init__(
        self,
        pde_residual: Residual | Callable | str | None = None,
        *,
        config: PhysicsLossConfig = PhysicsLossConfig(),
        constraints: Sequence[str] | Mapping[str, Callable] = (),
        batched: bool = True,
        domain: AbstractDomain | None = None,
        conditions: Sequence[AbstractCondition] = (),
        conserved: Sequence[Conserved] = (),
        num_points: int = 64,
        key: Key | None = None,
    ):
        self.config = config
        weights = {term: getattr(config, name) for name, term in _PARTS.items()}
        equation = _equation(pde_residual)
        known = None
        if domain is not None or conditions or conserved:
            setting = _setting(domain, conditions, conserved, equation)
            draw = jax.random.key(0) if key is None else key
            known = at_points(
                setting,
                conditions,
                conserved=conserved,
                num_points=num_points,
                key=draw,
            )
        self.problem = PhysicsInformed(
            equation, _constraints(constraints), batched, weights, known
        )
        adaptive = config.adaptive_weighting
        self.weighting = WEIGHTINGS[config.weighting]() if adaptive else Static()

    def terms(
        self,
        model: Callable,
        points: Array,
        *,
        data: tuple[Array, Array] | None = None,
        boundary: tuple[Array, Array] | None = None,
        initial: tuple[Array, Array] | None = None,
        key: Key | None = None,
    ) -> Terms:
        """The parts of the loss, by name, each with its weight of the configuration.

        **Arguments:**

        - `model`: maps points to fields.
        - `points`: where the equation holds, `(points, dim)`.
        - `data`, `boundary`, `initial`: points and values.
        - `key`: for derivatives that are random.
        """
        batch = physics_batch(points, data=data, boundary=boundary, initial=initial)
        key = jax.random.key(0) if key is None else key
        return self.problem.terms(model, batch, key)[0]

    def __call__(self, model: Callable, points: Array, **known: Any) -> Scalar:
        """The sum of `terms`."""
        return jnp.sum(jnp.stack(list(self.terms(model, points, **known).values())))


def physics_batch(
    points: Array,
    *,
    data: tuple[Array, Array] | None = None,
    boundary: tuple[Array, Array] | None = None,
    initial: tuple[Array, Array] | None = None,
) -> dict[str, Any]:
    """A batch of [`PhysicsInformed`][] from points, and pairs of points and values."""
    known = {"data": data, "boundary": boundary, "initial": initial}
    pairs = {name: Pairs(*pair) for name, pair in known.items() if pair is not None}
    return {"interior": points, **pairs}


def _equation(given: Residual | Callable | str | None) -> Residual | Callable | None:
    if not isinstance(given, str):
        return given
    if given not in BENCHMARKS:
        raise ValueError(unknown_name("pde_residual", given, BENCHMARKS))
    problem = make_benchmark(given).problem
    assert isinstance(problem, PDE)
    return problem.equation


def _setting(
    domain: AbstractDomain | None,
    conditions: Sequence[AbstractCondition],
    conserved: Sequence[Conserved],
    equation: Any,
) -> Setting:
    """What the conditions and laws are a part of, in the words of the equation."""
    if domain is None:
        raise ValueError(
            "`conditions` and `conserved` need the geometry. Give `domain`."
        )
    if not conditions and not conserved:
        raise ValueError(
            "`domain` has nothing to go with. Give `conditions` or `conserved`."
        )
    for condition in conditions:
        if condition.exact:
            raise ValueError(
                f"The condition on {condition.boundary!r} is exact, so it is no term "
                "of a loss. Give it to `BoundaryConfig`, or drop `exact=True`."
            )
    spoken = [equation] if isinstance(equation, Residual) else []
    spoken += [law.density for law in conserved]
    if not spoken:
        return setting_of(domain, conditions)
    words = {"fields": spoken[0].fields, "coords": spoken[0].coords}
    return setting_of(domain, conditions, **words)


def _constraints(given: Sequence[str] | Mapping[str, Callable]) -> dict[str, Callable]:
    if isinstance(given, Mapping):
        return dict(given)
    for name in given:
        if name not in CONSTRAINTS:
            raise ValueError(unknown_name("constraints", name, CONSTRAINTS))
    return {name: CONSTRAINTS[name] for name in given}
