"""The one implementation behind the documented trainers."""

import abc
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from flax import nnx
from jaxtyping import Array

from .._callback.progress import ProgressBar
from .._fit import fit, TrainingError
from .._misc import unknown_name
from .._results import RESULTS
from .._state import TrainingState
from .._step import init
from .._weighting.static import Static
from ..core.physics.losses import PhysicsInformedLoss
from ..core.training.config import TrainingConfig
from . import stores
from .bridge import NNXModel
from .data import checked_pair
from .history import EpochLog
from .logs import Logs
from .models import as_pytree
from .parts import Parts
from .plan import Given, make_plan, Plan, Sets
from .recorder import Recorder, Run
from .steps import loss_of, no_data, one_step, whole_batch
from .stores import check_unused, checkpoints
from .view import StateView


HOOKS = ("train_start", "epoch_end", "train_end")
_RESERVED = frozenset(
    (
        "train_loss val_loss learning_rate grad_norm step_scale epoch epochs wall_time"
    ).split()
) | {"result", "recovery", "data", "interior", "boundary", "initial"}

History = dict[str, Any]


class AbstractTrainer(abc.ABC):
    """Trains a model as a configuration says.

    **Attributes:**

    - `model`: the user's own module, trained in place; for other pytrees, the latest.
    - `config`: the configuration.
    - `history`: that of the latest run.
    """

    model: Any
    config: TrainingConfig
    history: History

    @abc.abstractmethod
    def __init__(self, model: Any, config: TrainingConfig):
        """To be given parts of their own by each trainer."""

    def _begin(self, model: Any, config: Any, rngs: Any, parts: Parts) -> None:
        if not isinstance(config, TrainingConfig):
            raise TypeError(
                f"`config` must be a `TrainingConfig`, got {type(config).__name__}."
            )
        as_pytree(model)
        self.model = model
        self.config = config
        self.history = {}
        self._parts = parts
        self._key = _key(config, rngs)
        self._row_loss = config.loss.row_loss
        self._physics: PhysicsInformedLoss | None = None
        self._custom: dict[str, Callable] = {}
        self._hooks: dict[str, list[Callable]] = {point: [] for point in HOOKS}
        self._optimizers: dict[int, Any] = {}
        self._state: TrainingState | None = None
        self._run: Run | None = None
        self._sets: Sets | None = None
        self._plan: Plan | None = None
        self._step_plans: dict[Any, Plan] = {}

    # What is trained on.

    def set_physics_loss(self, physics_loss: Any) -> None:
        """Trains on an equation, at the inputs of the training data, too."""
        if not isinstance(physics_loss, PhysicsInformedLoss):
            raise TypeError(
                "`physics_loss` must be a `PhysicsInformedLoss`, got "
                f"{type(physics_loss).__name__}. Wrap a residual: "
                "`PhysicsInformedLoss(pde_residual=...)`."
            )
        self._physics = physics_loss
        self._forget_plans()

    def register_custom_loss(self, name: str, fn: Callable) -> None:
        """Adds a term to the loss.

        **Arguments:**

        - `name`: of the term, in the history too.
        - `fn`: maps the model as a function of a batch, the inputs and the targets
            (`None` for points of an equation) to a number, or one number a row.
        """
        if not callable(fn):
            raise TypeError(f"`fn` must be a function, got {fn!r}.")
        if name in _RESERVED:
            raise ValueError(
                f"`name` = {name!r} stands for something else in the history. Choose "
                "another."
            )
        self._custom[name] = fn
        self._forget_plans()

    def register_hook(self, point: str, fn: Callable) -> None:
        """Calls `fn(state, metrics)` at a point of the run, with the training state and
        the latest numbers of the history.

        With a hook at `"epoch_end"` an epoch is a chunk of its own. An error in it ends
        the run, hands the best model back, and is raised.

        **Arguments:**

        - `point`: `"train_start"`, `"epoch_end"` or `"train_end"`.
        """
        if point not in HOOKS:
            raise ValueError(unknown_name("point", point, HOOKS))
        if not callable(fn):
            raise TypeError(f"`fn` must be a function, got {fn!r}.")
        self._hooks[point].append(fn)

    def _forget_plans(self) -> None:
        self._plan = None
        self._step_plans = {}

    # Whole runs.

    def train(
        self,
        train_data: Any,
        val_data: Any = None,
        *,
        boundary_data: Any = None,
        initial_data: Any = None,
    ) -> tuple[Any, History]:
        """Begins a run at the parameters that the model has now.

        **Arguments:**

        - `train_data`: inputs `(rows, ...)` and targets; or `(points, None)` with a
            physics loss.
        - `val_data`: likewise, to judge the model by.
        - `boundary_data`, `initial_data`: points and values there.

        **Returns:** the trained model and the history.

        **Raises:** before the first step, if something is wrong with the data; and
        `TrainingError`, if the run could not go on. In any case the model holds the
        best finite parameters.
        """
        plan = self._prepared(train_data, val_data, boundary_data, initial_data)
        check_unused(self.config)
        state = plan.recipe.init(as_pytree(self.model), key=self._key)
        return self._go(plan, state, self.config.num_epochs)

    fit = train

    def resume(
        self,
        train_data: Any = None,
        val_data: Any = None,
        *,
        boundary_data: Any = None,
        initial_data: Any = None,
    ) -> tuple[Any, History]:
        """Goes on from the latest checkpoint, to the end of `num_epochs`.

        What follows is bit for bit what would have followed without the break, given
        the same data.

        **Arguments:** those of `train`; without them, those of the last run.

        **Returns:** the trained model, and the history from the checkpoint on.
        """
        if train_data is not None:
            self._prepared(train_data, val_data, boundary_data, initial_data)
        elif self._sets is None:
            raise ValueError(
                "`train_data` is needed to go on in a new process: a checkpoint holds "
                "no data. Call `resume(train_data, ...)`."
            )
        plan = self._current_plan()
        state = stores.restore(self.config, self._blank(plan), None)
        left = self.config.num_epochs - int(state.progress.epoch)
        return self._go(plan, state, max(left, 0))

    def _prepared(self, train_data, val_data, boundary_data, initial_data) -> Plan:
        model, physics = as_pytree(self.model), self._physics
        points = physics is not None
        known = {"boundary": boundary_data, "initial": initial_data}
        check = lambda name, pair, points: checked_pair(
            name, pair, model, points=points
        )
        self._sets = Sets(
            check("train_data", train_data, points),
            None
            if val_data is None
            else check("val_data", val_data, points and _has_equation(physics)),
            {
                name: check(f"{name}_data", pair, False)
                for name, pair in known.items()
                if pair is not None
            },
        )
        self._plan = None
        return self._current_plan()

    def _current_plan(self) -> Plan:
        """The plan for the data at hand, made anew if something was changed."""
        assert self._sets is not None
        if self._plan is None:
            self._plan = make_plan(
                self._given(), self._sets, as_pytree(self.model), self._optimizer
            )
        return self._plan

    def _given(self) -> Given:
        return Given(
            self.config,
            self._row_loss,
            self._physics,
            dict(self._custom),
            Static() if self._physics is None else self._physics.weighting,
            self._parts.recovery,
            bool(self._all_listeners()),
        )

    def _optimizer(self, total_steps: int) -> Any:
        # Kept, because a new one of equal settings would be compiled anew.
        if total_steps not in self._optimizers:
            made = self._parts.make_optimizer(self.config, total_steps)
            self._optimizers[total_steps] = made
        return self._optimizers[total_steps]

    def _go(self, plan: Plan, state: TrainingState, epochs: int) -> tuple[Any, History]:
        total = self.config.num_epochs * plan.step_weights.shape[0]
        adaptive = not isinstance(plan.recipe.weighting, Static)
        schedule = self._parts.schedule(self.config, total)
        run = Run(EpochLog(plan.step_weights, plan.measured, schedule, adaptive))
        self._run, self._state = run, state
        logs = [Logs(x) for x in [self.config.logging_config] if x is not None]
        listeners = (*self._all_listeners(), *self._collecting(), *logs)
        bar = [ProgressBar()] if self.config.progress else []
        callbacks = [Recorder(run, listeners), *bar, *checkpoints(self.config)]
        begin, result = time.perf_counter(), ""
        try:
            self._parts.start(self.config, self.model, self.training_state)
            self._call("train_start")
            state = fit(
                plan.chunk,
                state,
                num_chunks=-(-epochs // plan.chunk.epochs),
                callbacks=callbacks,
                validation=plan.validation,
            )
            result = RESULTS[state.progress.result]
        except TrainingError as error:
            state, result = error.state, RESULTS[error.state.progress.result]
            raise
        except BaseException as error:
            # A second interrupt, most likely: the run has named its best state.
            state = run.ended or state
            result = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._adopt(state)
            self._remember(time.perf_counter() - begin, result)
            self._parts.end(run.faults)
            for log in logs:
                log.close()
        if run.error is not None:
            raise run.error
        self._check_progress(state)
        self._call("train_end")
        return self.model, self.history

    def _check_progress(self, state: TrainingState) -> None:
        losses = self.history.get("train_loss", np.zeros(1))
        if np.isnan(losses).all():
            raise TrainingError(
                "Not one step could be taken: the loss or its gradient was never "
                f"finite. Faults: {self.history['recovery']}. Look at the term and the "
                "array that it names.",
                state,
            )

    def _all_listeners(self) -> tuple[Callable, ...]:
        """Everybody who must be called after each epoch, with the state of then."""
        found: list[Callable] = []
        if self._parts.components:
            found.append(self._update_components)
        callback = self.config.progress_callback
        if callback is not None:
            found.append(lambda state, epoch, metrics: callback(epoch, metrics))
        for hook in self._hooks["epoch_end"]:
            found.append(self._hooked(hook))
        return tuple(found)

    def _collecting(self) -> list[Callable]:
        collector = self._parts.collector
        if collector is None:
            return []
        return [lambda state, epoch, found: collector.update_metrics_history(found)]

    def _update_components(self, state: Any, epoch: int, metrics: dict) -> None:
        self._parts.update(self._view(state), epoch, metrics)

    def _hooked(self, hook: Callable) -> Callable:
        return lambda state, epoch, metrics: hook(self._view(state), metrics)

    def _call(self, point: str) -> None:
        for hook in self._hooks[point]:
            hook(self.training_state, self.training_state.diagnostics)

    def _adopt(self, state: TrainingState) -> None:
        """Gives the user's model the parameters of `state`."""
        self._state = state
        if isinstance(state.model, NNXModel):
            state.model.write_to(self.model)
        else:
            self.model = state.model

    def _remember(self, seconds: float, result: str) -> None:
        assert self._run is not None and self._state is not None
        columns = self._run.log.columns()
        if columns:
            columns.setdefault("val_loss", np.full(columns["epoch"].shape, np.nan))
        epoch = columns.get("epoch", np.zeros(0, int))
        report = self._run.faults
        attempts = report.get("rolled_back", 0) + report.get("reinitialised", 0)
        self.history = columns | {
            "epochs": int(epoch.shape[0]),
            "wall_time": seconds,
            "result": result,
            "recovery": {"attempts": attempts} | report,
        }

    # Single steps.

    def training_step(self, x: Any, y: Any = None) -> float:
        """One step of the optimizer on a batch; the loss before it."""
        plan, sets = self._step_plan(x, y)
        if self._state is None:
            self._state = plan.recipe.init(as_pytree(self.model), key=self._key)
        # The user may have changed the model since.
        state = eqx.tree_at(lambda s: s.model, self._state, as_pytree(self.model))
        state, info = one_step(plan.recipe, state, whole_batch(sets, plan.interior))
        self._adopt(state)
        if self._run is None:
            self._run = Run(EpochLog(plan.step_weights, (), None, False))
        self._run.terms = tuple(info.terms)
        loss, norm = float(info.loss), float(info.grad_norm)
        self._run.latest = {"train_loss": loss, "grad_norm": norm}
        return loss

    def validation_step(self, x: Any, y: Any = None) -> float:
        """The loss on a batch, in evaluation mode; nothing changes."""
        plan, sets = self._step_plan(x, y)
        batch = whole_batch(sets, plan.interior)
        return float(loss_of(plan.recipe.problem, as_pytree(self.model), batch))

    def _step_plan(self, x: Any, y: Any) -> tuple[Plan, Sets]:
        model = as_pytree(self.model)
        points = self._physics is not None
        data = checked_pair("(x, y)", (x, y), model, points=points)
        sets = Sets(data, None, {} if self._sets is None else self._sets.known)
        kind = y is None, tuple(sets.known)
        if kind not in self._step_plans:
            plan = make_plan(self._given(), sets, model, self._optimizer)
            self._step_plans[kind] = plan
        return self._step_plans[kind], sets

    # States and checkpoints.

    @property
    def training_state(self) -> StateView:
        """Where training is; after a run, where it ended."""
        return self._view(self._state)

    def _view(self, state: TrainingState | None) -> StateView:
        model, run = self.model, self._run
        if state is not None and not isinstance(state.model, NNXModel):
            model = state.model
        if run is None:
            return StateView(state, model)
        return StateView(state, model, run.terms, run.latest, run.faults or None)

    def save_checkpoint(self, step: int | None = None) -> None:
        """Writes the training state to `checkpoint_dir`.

        **Arguments:**

        - `step`: what the number of steps is believed to be, if that is to be checked.
        """
        if self._state is None:
            raise ValueError("There is nothing to save yet. Call `train` first.")
        if step is not None and step != int(self._state.step):
            raise ValueError(
                f"`step` must be that of the state, {int(self._state.step)}, got "
                f"{step}. Leave it out."
            )
        stores.save(self.config, self._state)

    def load_checkpoint(self, step: int | None = None) -> StateView:
        """Reads the training state, and the model, from `checkpoint_dir`.

        **Arguments:**

        - `step`: which; the latest, unless given.
        """
        like = self._state
        if like is None:
            like = self._blank(None if self._sets is None else self._current_plan())
        self._adopt(stores.restore(self.config, like, step))
        return self.training_state

    def _blank(self, plan: Plan | None) -> TrainingState:
        """A state of the right structure, for what is read to be put in."""
        model = as_pytree(self.model)
        if plan is not None:
            return plan.recipe.init(model, key=self._key)
        if self._physics is not None and self._physics.config.adaptive_weighting:
            raise ValueError(
                "Adaptive weights are kept by the terms of the loss, which follow from "
                "the data. Call `resume(train_data, ...)`."
            )
        optim = self._optimizer(self.config.num_epochs)
        return init(optim, no_data(), self._parts.recovery, model, key=self._key)


def _has_equation(physics: PhysicsInformedLoss | None) -> bool:
    return physics is not None and physics.problem.equation is not None


def _key(config: TrainingConfig, rngs: Any) -> Array:
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
