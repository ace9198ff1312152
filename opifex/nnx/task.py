"""What a documented trainer was told to do."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from flax import nnx
from jaxtyping import Array

from .._misc import Frozen
from .._problem.at_points import as_type
from .._problem.forces import check_hartree, check_nuclei
from .._state import TrainingState
from .._step import init
from ..core.physics.losses import PhysicsInformedLoss
from ..core.training.config import TrainingConfig
from .data import checked_pair, Data
from .functionals import checked_molecules, is_quantum, self_consistent
from .given import Given, Sets
from .models import as_pytree, Imposed, real_dtype, SelfConsistent
from .parts import Parts
from .plan import make_plan, Plan
from .steps import no_data
from .terms.boundary import exact_conditions, soft_conditions
from .terms.quantum import has_forces


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
        self._ansatz = exact_conditions(config.boundary_config)
        self._soft = soft_conditions(config.boundary_config, self.key)
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
        self.sets = Sets(
            self._checked("train_data", train, model, points),
            None if val is None else self._checked("val_data", val, model, judged),
            {
                name: checked_pair(f"{name}_data", pair, model, points=False)
                for name, pair in known.items()
                if pair is not None
            },
        )
        self._plan = None
        return self.plan(model)

    def _checked(self, name: str, pair: Any, model: Any, points: bool) -> Data:
        if isinstance(model, SelfConsistent):
            return checked_molecules(name, pair, model)
        quantum = self.config.quantum_config
        forces = has_forces(quantum)
        data = checked_pair(name, pair, model, points=points, forces=forces)
        shape = data.inputs.shape
        if quantum is not None and len(shape) == 3 and shape[-1] == 3:
            check_nuclei(f"{name}[0]", data.inputs)
            if data.targets is not None:
                energies = data.targets.reshape(shape[0], -1)[:, :1]
                check_hartree(f"{name}[1]", energies, shape[1])
        return data

    def pytree(self, model: Any) -> Any:
        """What is trained in place of the user's model: the same, or with exact
        conditions the formula around it; the equations around a functional."""
        if is_quantum(self.config):
            return self_consistent(model, self.config)
        plain = as_pytree(model)
        if self._ansatz is None:
            return plain
        return Imposed(plain, Frozen(as_type(self._ansatz, real_dtype(plain))))

    def plan(self, model: Any) -> Plan:
        """That for the data at hand."""
        if self.sets is None:
            raise ValueError(
                "`train_data` is needed to go on in a new process: a checkpoint holds "
                "no data. Call `resume(train_data, ...)`."
            )
        if self._plan is None:
            given = self._given()
            self._plan = make_plan(given, self.sets, model, self.optimizer)
        return self._plan

    def step_plan(self, model: Any, x: Any, y: Any) -> tuple[Plan, Sets]:
        """That for a single batch, with the values that are known besides."""
        points = self._physics is not None
        data = self._checked("(x, y)", (x, y), model, points)
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
        given = self._given()
        adaptive = given.physics is not None and given.physics.config.adaptive_weighting
        if adaptive or given.multiplies:
            raise ValueError(
                "Weights that adapt belong to the terms of the loss, which follow from "
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
            self.parts.recovery,
            self.listens,
            self._soft,
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
