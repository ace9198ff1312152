"""The documented way to say what happens when training goes wrong."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._misc import (
    check_count,
    check_number,
    tree_allfinite,
    tree_copy,
    tree_norm,
    unknown_name,
)
from .._recovery.backtrack import Backtrack
from .._recovery.redraw import redrawn
from .._recovery.remedies import Remedy
from .._state import TrainingState
from .._step import trainable
from ..core._checks import check_flag
from .view import StateView


STRATEGIES = {
    "gradient_clipping": Remedy.CLIP,
    "learning_rate_reduction": Remedy.SHORTEN,
    "parameter_reinitialization": Remedy.REDRAW,
}
ISSUES = ("loss_explosion", "gradient_explosion", "nan_loss", "nan_gradients")

# Above which norms gradients are clipped, unless told otherwise.
_SPIKES = Backtrack().spikes


@dataclass(frozen=True)
class _Settings:
    max_retries: int = 3
    gradient_clip_threshold: int | float = 10.0
    loss_explosion_threshold: int | float = 1e6
    checkpoint_on_error: bool = True
    adapt_threshold: bool = True
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    lr_factor: int | float = 0.5

    def __post_init__(self):
        check_count("max_retries", self.max_retries)
        for name in ("gradient_clip_threshold", "loss_explosion_threshold"):
            check_number(name, getattr(self, name), 0, open_low=True)
        check_flag("checkpoint_on_error", self.checkpoint_on_error)
        check_flag("adapt_threshold", self.adapt_threshold)
        if not 0 < self.lr_factor < 1:
            raise ValueError(
                f"`lr_factor` must lie between 0 and 1, got {self.lr_factor!r}."
            )
        for name in self.strategies:
            if name not in STRATEGIES:
                raise ValueError(unknown_name("strategies", name, STRATEGIES))
        if len(set(self.strategies)) < len(self.strategies):
            raise ValueError(
                f"`strategies` must be different, got {list(self.strategies)}."
            )


class ErrorRecoveryManager:
    """What to do when a loss or a gradient is not finite, or explodes.

    With a trainer it stands for a [`Backtrack`][]. The methods do the same by hand, in
    a loop of one's own.

    **Arguments:** `config`, a dictionary with

    - `max_retries` (3): how often to go back before the run is given up.
    - `gradient_clip_threshold` (10): the norm to which gradients are clipped.
    - `loss_explosion_threshold` (1e6): a loss above it has exploded.
    - `checkpoint_on_error` (True): whether a trainer that writes checkpoints writes one
        where something went wrong.
    - `adapt_threshold` (True): whether gradients are clipped below the threshold too,
        at 10 times a running quantile of their norms (at 1000 times until there were
        50 of them).
    - `strategies` (all): what is done against a fault that comes again, in the order in
        which it is tried. The first way back takes the first, each further one the next
        too: `"gradient_clipping"` clips from the start, and now to a norm that is lower
        by `lr_factor`; `"learning_rate_reduction"` makes steps shorter by it, again and
        again; `"parameter_reinitialization"` partly draws parameters anew.
    - `lr_factor` (0.5).

    **Attributes:**

    - `recovery`: the same as a [`Backtrack`][].
    - `recovery_attempts`: how often something had to be recovered.
    - `history`: a dictionary for each time that something went wrong.
    """

    recovery_attempts: int
    history: list[dict[str, Any]]

    def __init__(self, config: Mapping[str, Any] | None = None):
        known = [field.name for field in fields(_Settings)]
        given = dict(config or {})
        for key in given:
            if key not in known:
                raise ValueError(unknown_name("config", str(key), known))
        if "strategies" in given:
            given["strategies"] = tuple(given["strategies"])
        self.settings = _Settings(**given)
        self.recovery = _translated(self.settings)
        self.recovery_attempts = 0
        self.history = []
        self._stable: TrainingState | None = None
        self._level = jnp.zeros(())  # of the running quantile
        self._seen = jnp.array(0)
        self._lowered = 0

    @property
    def clip_threshold(self) -> float:
        """The norm to which gradients are clipped by now."""
        limit = float(self.settings.gradient_clip_threshold)
        if self.settings.adapt_threshold:
            limit = min(limit, float(_SPIKES.bound(self._level, self._seen)))
        return limit * self.settings.lr_factor**self._lowered

    def check_training_stability(
        self, loss: Any, grads: PyTree, state: Any = None
    ) -> tuple[bool, str | None]:
        """Whether all is well, and if not, what is wrong.

        A state that comes with good news is remembered, to go back to.

        **Arguments:**

        - `loss`, `grads`: of a step.
        - `state`: the training state that they were measured at.

        **Returns:** `True` and `None`; or `False` and `"nan_loss"`, `"nan_gradients"`,
        `"loss_explosion"` or `"gradient_explosion"`.
        """
        norm, value = float(tree_norm(grads)), float(loss)
        issue = self._issue(value, norm)
        if issue is None and state is not None:
            self._stable = tree_copy(_core(state))
        if issue is not None:
            array = _first_bad(grads)
            self.history.append(
                {"event": "unstable", "issue": issue, "loss": value, "grad_norm": norm}
                | ({} if array is None else {"array": array})
            )
        return issue is None, issue

    def _issue(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return "nan_loss"
        if not math.isfinite(norm):
            return "nan_gradients"
        if loss > self.settings.loss_explosion_threshold:
            return "loss_explosion"
        if norm > self.settings.gradient_clip_threshold:
            return "gradient_explosion"
        return None

    def apply_gradient_clipping(self, grads: PyTree) -> PyTree:
        """The gradients, scaled so that their norm is at most `clip_threshold`.

        The norm enters the running quantile.

        **Raises:** `ValueError` if they are not finite: no factor mends that.
        """
        norm = float(tree_norm(grads))
        if not math.isfinite(norm):
            raise ValueError(
                "`grads` are not finite, first in "
                f"{_first_bad(grads)!r}. Do not take this step: call "
                "`recover_from_instability('nan_gradients', state)`."
            )
        limit = self.clip_threshold
        if norm > 0:
            self._level = _SPIKES.followed(self._level, jnp.array(norm), self._seen)
            self._seen += 1
        if norm <= limit:
            return grads
        factor = limit / norm
        return jtu.tree_map(
            lambda g: g * factor if eqx.is_inexact_array(g) else g, grads
        )

    def recover_from_instability(self, issue: str, state: Any) -> TrainingState:
        """The last state that was seen to be stable, to go on from.

        The first attempt takes the first of the `strategies`, each further one the next
        too. Where that reduces the learning rate, steps are `lr_factor` times as long
        as those of `state`, through its `step_scale`.

        **Arguments:**

        - `issue`: from `check_training_stability`.
        - `state`: where training is.

        **Raises:** `RuntimeError` when `max_retries` are used up, and if there is no
        finite state to go back to.
        """
        if issue not in ISSUES:
            raise ValueError(unknown_name("issue", issue, ISSUES))
        settings, now = self.settings, _core(state)
        self.recovery_attempts += 1
        if self.recovery_attempts > settings.max_retries:
            raise RuntimeError(
                f"Training did not recover from {issue!r}: `max_retries` = "
                f"{settings.max_retries} are used up. Lower the learning rate, or "
                "raise `max_retries`."
            )
        ground = self._ground(now)
        taken = settings.strategies[: self.recovery_attempts]
        scale, model = now.step_scale, ground.model
        if "gradient_clipping" in taken:
            self._lowered += 1
        if "learning_rate_reduction" in taken:
            scale = settings.lr_factor * scale
        if "parameter_reinitialization" in taken:
            model = _redrawn(model, now.key_for("recover"))
        self.history.append(
            {
                "event": "recovered",
                "issue": issue,
                "step": int(now.step),
                "attempt": self.recovery_attempts,
                "taken": ["rollback", *taken],
                "step_scale": float(scale),
                "clip_threshold": self.clip_threshold,
            }
        )
        return replace(
            now,
            model=model,
            opt_state=ground.opt_state,
            step_scale=scale,
        )

    def _ground(self, now: TrainingState) -> TrainingState:
        for candidate in (self._stable, now):
            if candidate is not None and tree_allfinite(candidate.model):
                return tree_copy(candidate)
        raise RuntimeError(
            "There is no finite state to go back to: `state` is not, and none was seen "
            "to be stable. Call `check_training_stability(loss, grads, state)` at "
            "every step, from the first."
        )

    def note(self, report: Mapping[str, Any]) -> None:
        """Takes over what a trainer's run had to recover; see [`fault_report`][]."""
        counts = {k: v for k, v in report.items() if k != "first" and v}
        self.recovery_attempts = report.get("rolled_back", 0)
        if not counts:
            return
        event = {"event": "run", "counts": counts}
        self.history.append(event | {k: report[k] for k in ("first",) if k in report})


def _translated(settings: _Settings) -> Backtrack:
    clips = "gradient_clipping" in settings.strategies
    adapts = settings.adapt_threshold and clips
    return Backtrack(
        factor=float(settings.lr_factor),
        retries=0,
        max_attempts=settings.max_retries,
        max_reinits=0,
        max_loss=float(settings.loss_explosion_threshold),
        # A run may begin at a model that fits: its first steps, of an optimizer that
        # remembers nothing, then raise a tiny loss by any factor.
        max_rise=math.inf,
        max_growth=math.inf,  # of running statistics, perhaps
        spike_factor=_SPIKES.factor if adapts else math.inf,
        clips=clips,
        max_grad_norm=float(settings.gradient_clip_threshold) if clips else math.inf,
        remedies=tuple(STRATEGIES[name] for name in settings.strategies),
    )


def _core(state: Any) -> TrainingState:
    core = state.core if isinstance(state, StateView) else state
    if not isinstance(core, TrainingState):
        raise TypeError(
            "`state` must be a `TrainingState`, as from `trainer.training_state`, got "
            f"{type(core).__name__}."
        )
    return core


def _first_bad(tree: PyTree) -> str | None:
    """The path of the first array that is not finite."""
    arrays = eqx.filter(tree, eqx.is_inexact_array)
    for path, leaf in jtu.tree_leaves_with_path(arrays):
        if not np.isfinite(np.asarray(leaf)).all():
            return jtu.keystr(path)
    return None


def _redrawn(model: Any, key: Any) -> Any:
    """The trained arrays shrunk to half and perturbed, as [`Backtrack`][] does."""
    params, rest = eqx.partition(model, trainable(model))
    leaves, structure = jtu.tree_flatten(params)

    key_of = lambda i: jr.fold_in(key, i)
    leaves = [redrawn(x, key_of(i)) for i, x in enumerate(leaves)]
    return eqx.combine(jtu.tree_unflatten(structure, leaves), rest)
