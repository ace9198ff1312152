"""What a documented trainer was told to do."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from flax import nnx
from jaxtyping import Array

from .._state import TrainingState
from .._step import init
from .._weighting.static import Static
from ..core.physics.losses import PhysicsInformedLoss
from ..core.training.config import TrainingConfig
from .data import checked_pair
from .parts import Parts
from .plan import Given, make_plan, Plan, Sets
from .steps import no_data
from .terms.boundary import boundary_values


_RESERVED = {
    *("train_loss", "val_loss", "learning_rate", "grad_norm", "step_scale"),
    *("epoch", "epochs", "wall_time", "result", "recovery"),
    *("data", "interior", "boundary", "initial"),
}


class Task:
    """Configuration, losses and data, and the plans that follow from them.

    A plan is kept until something changes that it depends on, so that what was compiled
    for it is used again.

    **Arguments:**

    - `config`, `parts`: of the trainer.
    - `rngs`: where randomness comes from, if not from the seed.
    """

    def __init__(self, config: TrainingConfig, parts: Parts, rngs: Any):
        self.config = config
        self.parts = parts
        self.key = key_of(config, rngs)
        self.listens = False  # whether somebody wants to be called after every epoch
        self.sets: Sets | None = None
        self._row_loss = config.loss.row_loss
        self._physics: PhysicsInformedLoss | None = None
        self._custom: dict[str, Callable] = {}
        self._optimizers: dict[int, Any] = {}
        self._plan: Plan | None = None
        self._step_plans: dict[Any, Plan] = {}

    def set_physics_loss(self, physics_loss: Any) -> None:
        if not isinstance(physics_loss, PhysicsInformedLoss):
            raise TypeError(
                "`physics_loss` must be a `PhysicsInformedLoss`, got "
                f"{type(physics_loss).__name__}. Wrap a residual: "
                "`PhysicsInformedLoss(pde_residual=...)`."
            )
        self._physics = physics_loss
        self.forget()

    def register_custom_loss(self, name: str, fn: Any) -> None:
        if not callable(fn):
            raise TypeError(f"`fn` must be a function, got {fn!r}.")
        if name in _RESERVED:
            raise ValueError(
                f"`name` = {name!r} stands for something else in the history. Choose "
                "another."
            )
        self._custom[name] = fn
        self.forget()

    def forget(self) -> None:
        """Drops the plans, because something changed."""
        self._plan, self._step_plans = None, {}

    def prepare(self, model: Any, train: Any, val: Any, known: dict[str, Any]) -> Plan:
        """Checks the data, and makes the plan for them."""
        points = self._physics is not None
        problem = None if self._physics is None else self._physics.problem
        judged = problem is not None and problem.equation is not None
        check = lambda name, pair, points: checked_pair(
            name, pair, model, points=points
        )
        data = check("train_data", train, points)
        known = known | self._boundary(known["boundary"], data.inputs.dtype)
        self.sets = Sets(
            data,
            None if val is None else check("val_data", val, judged),
            {
                name: check(f"{name}_data", pair, False)
                for name, pair in known.items()
                if pair is not None
            },
        )
        self._plan = None
        return self.plan(model)

    def _boundary(self, given: Any, dtype: Any) -> dict[str, Any]:
        """The points and values that the configuration of the boundary stands for."""
        config = self.config.boundary_config
        found = None if config is None else boundary_values(config, self.key)
        if found is None:
            return {}
        if given is not None:
            raise ValueError(
                "`boundary_data` contradicts `boundary_config.conditions`. Give one of "
                "the two."
            )
        return {"boundary": tuple(x.astype(dtype) for x in found)}

    def plan(self, model: Any) -> Plan:
        """That for the data at hand."""
        if self.sets is None:
            raise ValueError(
                "`train_data` is needed to go on in a new process: a checkpoint holds "
                "no data. Call `resume(train_data, ...)`."
            )
        if self._plan is None:
            self._plan = make_plan(self._given(), self.sets, model, self.optimizer)
        return self._plan

    def step_plan(self, model: Any, x: Any, y: Any) -> tuple[Plan, Sets]:
        """That for a single batch, with the values that are known besides."""
        points = self._physics is not None
        data = checked_pair("(x, y)", (x, y), model, points=points)
        sets = Sets(data, None, {} if self.sets is None else self.sets.known)
        kind = y is None, tuple(sets.known)
        if kind not in self._step_plans:
            plan = make_plan(self._given(), sets, model, self.optimizer)
            self._step_plans[kind] = plan
        return self._step_plans[kind], sets

    def blank(self, model: Any) -> TrainingState:
        """A state of the right structure, for what is read to be put in."""
        if self.sets is not None:
            return self.plan(model).recipe.init(model, key=self.key)
        if self._physics is not None and self._physics.config.adaptive_weighting:
            raise ValueError(
                "Adaptive weights are kept by the terms of the loss, which follow from "
                "the data. Call `resume(train_data, ...)`."
            )
        optim, recovery = self.optimizer(self.config.num_epochs), self.parts.recovery
        return init(optim, no_data(), recovery, model, key=self.key)

    def optimizer(self, total_steps: int) -> Any:
        """The optimizer of a run of so many steps."""
        # Kept, because a new one of equal settings would be compiled anew.
        if total_steps not in self._optimizers:
            made = self.parts.make_optimizer(self.config, total_steps)
            self._optimizers[total_steps] = made
        return self._optimizers[total_steps]

    def _given(self) -> Given:
        return Given(
            self.config,
            self._row_loss,
            self._physics,
            dict(self._custom),
            Static() if self._physics is None else self._physics.weighting,
            self.parts.recovery,
            self.listens,
        )


def key_of(config: TrainingConfig, rngs: Any) -> Array:
    """The key of all that is random: from `rngs`, or else from the seed."""
    if rngs is None:
        return jr.key(config.seed)
    if isinstance(rngs, nnx.Rngs):
        streams = [name for name, _ in rngs.items()]
        if not streams:
            raise ValueError("`rngs` has no stream. Make it by `nnx.Rngs(0)`.")
        name = "default" if "default" in streams else streams[0]
        return getattr(rngs, name)()
    typed = eqx.is_array(rngs) and jnp.issubdtype(rngs.dtype, jax.dtypes.prng_key)
    if typed and rngs.shape == ():
        return rngs
    raise TypeError(
        f"`rngs` must be `nnx.Rngs` or a typed key, got {type(rngs).__name__}."
    )
