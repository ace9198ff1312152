"""The one implementation behind the documented trainers."""

import abc
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np

from .._callback.progress import ProgressBar
from .._fit import fit, TrainingError
from .._misc import unknown_name
from .._results import RESULTS
from .._state import TrainingState
from .._weighting.static import Static
from ..core.training.config import TrainingConfig
from . import stores
from .bridge import NNXModel
from .history import EpochLog
from .logs import Logs
from .models import network_of, predict
from .parts import Parts
from .plan import Plan
from .recorder import Recorder, Run
from .steps import loss_of, one_step, whole_batch
from .stores import check_unused, checkpoints
from .task import Task
from .view import StateView


HOOKS = ("train_start", "epoch_end", "train_end")

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
        self._task = Task(config, parts, rngs)
        self._task.pytree(model)
        self.model = model
        self.config = config
        self.history = {}
        self._hooks: dict[str, list[Callable]] = {point: [] for point in HOOKS}
        self._state: TrainingState | None = None
        self._run: Run | None = None

    # What is trained on.

    def set_physics_loss(self, physics_loss: Any) -> None:
        """Trains on an equation, at the inputs of the training data, too."""
        self._task.set_physics_loss(physics_loss)

    def register_custom_loss(self, name: str, fn: Any) -> None:
        """Adds a term to the loss.

        **Arguments:**

        - `name`: of the term, in the history too.
        - `fn`: maps the model as a function of a batch, the inputs and the targets
            (`None` for points of an equation) to a number, or one number a row.
        """
        self._task.register_custom_loss(name, fn)

    def register_hook(self, point: str, fn: Any) -> None:
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
        self._task.forget()

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

        **Returns:** the trained model and the history. With exact conditions it is
        `model_fn` that was trained, and the model is the network inside.

        **Raises:** before the first step, if something is wrong with the data; and
        `TrainingError`, if the run could not go on. In any case the model holds the
        best finite parameters.
        """
        known = {"boundary": boundary_data, "initial": initial_data}
        model = self._prepared()
        plan = self._task.prepare(model, train_data, val_data, known)
        check_unused(self.config)
        return self._go(plan, plan.recipe.init(model, key=self._task.key))

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
        known = {"boundary": boundary_data, "initial": initial_data}
        model = self._prepared()
        if train_data is not None:
            self._task.prepare(model, train_data, val_data, known)
        plan = self._task.plan(model)
        return self._go(
            plan, stores.restore(self.config, self._task.blank(model), None)
        )

    def _prepared(self) -> Any:
        """What is trained, as a pytree."""
        self._task.listens = bool(self._all_listeners())
        return self._task.pytree(self.model)

    def _go(self, plan: Plan, state: TrainingState) -> tuple[Any, History]:
        epochs = max(self.config.num_epochs - int(state.progress.epoch), 0)
        parts = self._task.parts
        total = self.config.num_epochs * plan.step_weights.shape[0]
        adaptive = not isinstance(plan.recipe.weighting, Static)
        schedule = parts.schedule(self.config, total)
        run = Run(EpochLog(plan.step_weights, plan.measured, schedule, adaptive))
        self._run, self._state = run, state
        logs = [Logs(x) for x in [self.config.logging_config] if x is not None]
        listeners = (*self._all_listeners(), *self._collecting(), *logs)
        bar = [ProgressBar()] if self.config.progress else []
        callbacks = [
            Recorder(run, listeners),
            *bar,
            *checkpoints(self.config, parts.manager),
        ]
        begin, result = time.perf_counter(), ""
        try:
            parts.start(self.config, self.model, self.training_state)
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
            parts.end(run.faults)
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
        if self._task.parts.components:
            found.append(self._update_components)
        callback = self.config.progress_callback
        if callback is not None:
            found.append(lambda state, epoch, metrics: callback(epoch, metrics))
        for hook in self._hooks["epoch_end"]:
            found.append(self._hooked(hook))
        return tuple(found)

    def _collecting(self) -> list[Callable]:
        collector = self._task.parts.collector
        if collector is None:
            return []
        return [lambda state, epoch, found: collector.update_metrics_history(found)]

    def _update_components(self, state: Any, epoch: int, metrics: dict) -> None:
        self._task.parts.update(self._live(state), epoch, metrics)

    def _hooked(self, hook: Callable) -> Callable:
        return lambda state, epoch, metrics: hook(self._live(state), metrics)

    def _live(self, state: TrainingState) -> StateView:
        """The state in the middle of a run; the user's module has its parameters."""
        network = network_of(state.model)
        if isinstance(network, NNXModel):
            network.write_to(self.model)
        return self._view(state)

    def _call(self, point: str) -> None:
        for hook in self._hooks[point]:
            hook(self.training_state, self.training_state.diagnostics)

    def _adopt(self, state: TrainingState) -> None:
        """Gives the user's model the parameters of `state`."""
        self._state = state
        network = network_of(state.model)
        if isinstance(network, NNXModel):
            network.write_to(self.model)
        else:
            self.model = network

    def _remember(self, seconds: float, result: str) -> None:
        assert self._run is not None and self._state is not None
        columns = self._run.log.columns()
        if columns:
            columns.setdefault("val_loss", np.full(columns["epoch"].shape, np.nan))
        epoch = columns.get("epoch", np.zeros(0, int))
        report = self._run.faults
        self.history = columns | {
            "epochs": int(epoch.shape[0]),
            "wall_time": seconds,
            "result": result,
            "recovery": {"attempts": report.get("rolled_back", 0)} | report,
        }

    # Single steps.

    def training_step(self, x: Any, y: Any = None) -> float:
        """One step of the optimizer on a batch; the loss before it."""
        model = self._task.pytree(self.model)
        plan, sets = self._task.step_plan(model, x, y)
        if self._state is None:
            self._state = plan.recipe.init(model, key=self._task.key)
        # The user may have changed the model since.
        state = eqx.tree_at(lambda s: s.model, self._state, model)
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
        model = self._task.pytree(self.model)
        plan, sets = self._task.step_plan(model, x, y)
        batch = whole_batch(sets, plan.interior)
        return float(loss_of(plan.recipe.problem, model, batch))

    # States and checkpoints.

    @property
    def model_fn(self) -> Callable[[Any], Any]:
        """The function of a batch that is trained, in evaluation mode, as it is now.

        It is `model`, unless conditions are exact: then it is the formula around
        `model` that satisfies them.
        """
        return eqx.Partial(predict, self._task.pytree(self.model))

    @property
    def training_state(self) -> StateView:
        """Where training is; after a run, where it ended."""
        return self._view(self._state)

    def _view(self, state: TrainingState | None) -> StateView:
        model, run = self.model, self._run
        if state is not None and not isinstance(state.model, NNXModel):
            model = state.model  # with exact conditions, the formula around the network
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
            like = self._task.blank(self._task.pytree(self.model))
        self._adopt(stores.restore(self.config, like, step))
        return self.training_state
