from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._custom_types import Flag, Scalar
from .._misc import (
    check_count,
    trainable,
    tree_allfinite,
    tree_copy,
    tree_norm,
    tree_where,
)
from .._results import RESULTS
from .._state import StepInfo
from .base import AbstractRecovery, CAUSES, Faults
from .record import Record
from .redraw import redraw_if
from .remedies import Remedy
from .spikes import Spikes


_MIN_HEALTHY = 10
# Spikes in a row that are put down to chance.
_MAX_SPIKES = 3


class _BacktrackState(eqx.Module):
    ground: tuple[Any, Any]  # the last (model, opt_state) that was seen to be healthy
    record: Record

    @property
    def faults(self) -> Faults:
        return self.record.faults


class Backtrack(AbstractRecovery[_BacktrackState]):
    """Skip a bad step; go back to known-good ground if that does not help.

    - A loss or gradient that is not finite: the step is not taken. If the next fails
      too, the model itself is bad, and the run goes back to its anchor.
    - A loss that exploded: back to the anchor at once. It is the sum of the terms
        without their weights that is judged: weights that grow are no explosion.
    - The first way back changes nothing else, since the fault may not come again. The
      `k`-th after that, counted since the anchor last moved, takes the first `k` of the
      `remedies`. Unless told otherwise that is one: it shortens the steps by `factor`,
      which compounds, and heals by the same factor after each `heal_after` healthy
      steps.
    - Parameters that grew beyond reason within a chunk: back to the anchor, whatever
      the loss (networks that are saturated have small gradients, and losses as at the
      start).
    - A gradient norm beyond `spike_factor` times its running quantile: the step is not
      taken. If three in a row were not, that is the new normal. With `clips` such a
      gradient is clipped instead.
    - When `max_attempts` ways back did not help, the parameters in which the fault
      showed are partly drawn anew, `max_reinits` times; then the run is given up.

    The anchor moves once a chunk, and only to a model that was seen healthy.

    **Arguments:**

    - `factor`: by which a way back shortens the steps, or lowers the bound of the
        gradient norm.
    - `heal_after`: healthy steps until one such cut is undone, and one way back
        forgiven.
    - `retries`: ways back, not yet forgiven, that take no remedy.
    - `max_attempts`: ways back before the next resort.
    - `max_reinits`: how often that resort is taken.
    - `max_loss`: a loss above it has exploded.
    - `max_rise`: so has one above this many times the lowest loss so far; every chunk
        begins with that lowest loss taken this many times itself, since at new points
        a model that had all but solved the equation at the old ones may be far off.
    - `max_growth`: the norm of all parameters that move (or 1, if it is less) may grow
        by this factor within a chunk.
    - `spike_quantile`, `spike_factor`: a spike is a norm beyond `spike_factor` times
        this quantile of the norms. It follows by stochastic approximation, in the
        logarithm.
    - `spike_after`: steps before the quantile is trusted; until then a spike is a norm
        beyond the cube of `spike_factor` times it.
    - `clips`: whether gradients are clipped, to the threshold of a spike and to
        `max_grad_norm`.
    - `max_grad_norm`: the norm that no clipped gradient exceeds.
    - `remedies`: what ways back do, in the order in which it is added: `Remedy.CLIP`,
        which needs `clips`, lowers the bound of the norm; `Remedy.SHORTEN` shortens the
        steps; `Remedy.REDRAW` partly draws anew the parameters in which the fault
        showed (or all, if it showed in none).
    """

    factor: float = 0.5
    heal_after: int = 200
    retries: int = 1
    max_attempts: int = 8
    max_reinits: int = 1
    max_loss: float = 1e6
    max_rise: float = 1e4
    max_growth: float = 1e3
    spike_quantile: float = 0.9
    spike_factor: float = 10.0
    spike_after: int = 50
    clips: bool = eqx.field(static=True, default=False)
    max_grad_norm: float = float("inf")
    remedies: tuple[Remedy, ...] = eqx.field(static=True, default=(Remedy.SHORTEN,))

    def __check_init__(self):
        for name in ("factor", "spike_quantile"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must lie between 0 and 1, got {getattr(self, name)!r}."
                )
        for name in ("max_loss", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"`{name}` must be positive, got {getattr(self, name)!r}."
                )
        for name in ("max_rise", "max_growth", "spike_factor"):
            if not getattr(self, name) > 1:
                raise ValueError(
                    f"`{name}` must be greater than 1, got {getattr(self, name)!r}."
                )
        check_count("heal_after", self.heal_after)
        check_count("retries", self.retries, least=0)
        check_count("max_attempts", self.max_attempts)
        check_count("max_reinits", self.max_reinits, least=0)
        check_count("spike_after", self.spike_after)
        self._check_remedies()

    def _check_remedies(self):
        given = self.remedies
        known = isinstance(given, tuple) and all(isinstance(r, Remedy) for r in given)
        if not known or len(set(given)) < len(given):
            raise ValueError(
                "`remedies` must be a tuple of different members of `Remedy`, got "
                f"{given!r}."
            )
        if Remedy.CLIP in given and not self.clips:
            raise ValueError(
                "`remedies` have `Remedy.CLIP`, but `clips` = False, so there is no "
                "bound to be lowered. Give `clips=True`, or leave it out."
            )

    def init(self, model, opt_state, num_leaves):
        ground = tree_copy((model, opt_state))
        return _BacktrackState(ground, Record.none(num_leaves))

    @property
    def first_clip_norm(self):
        return self.max_grad_norm if self.clips else None

    def decide(self, before, proposed, info):
        state = before.recovery_state
        info = self._judge(state.record, info)
        kept = info.result == RESULTS.successful
        exploded = info.result == RESULTS.exploded
        spiked = info.result == RESULTS.spiked  # no fault of the model
        back = exploded | (~kept & ~spiked & (state.record.failures > 0))
        # Kept, or back to the ground, or (skipped) where we were.
        model, opt_state = tree_where(
            kept,
            (proposed.model, proposed.opt_state),
            tree_where(back, state.ground, (before.model, before.opt_state)),
        )
        record = self._counted(state.record, info, kept, back)
        heals = (record.healthy > 0) & (record.healthy % self.heal_after == 0)
        record, cut, redrawn = self._treated(record, back, heals)
        heals = heals & (state.record.cuts > 0)
        # In a branch of its own, because it concerns few steps.
        suspects, faults = jax.lax.cond(
            kept,
            lambda: (record.suspects, record.faults),
            lambda: record.noted(before.step, info, back, redrawn),
        )
        record = replace(record, suspects=suspects, faults=faults)
        if Remedy.REDRAW in self.remedies:
            which = jnp.where(jnp.any(suspects), suspects, info.leaf_norms > 0)
            model = redraw_if(redrawn, model, which, before)
        clip_norm = before.clip_norm
        if clip_norm is not None:
            clipped = kept & (info.grad_norm > clip_norm)
            record = replace(record, faults=record.faults.count(clipped=clipped))
            clip_norm = self._bound(record)
        lost = (record.attempts > self.max_attempts) & (
            record.reinits >= self.max_reinits
        )
        result = RESULTS.where(lost & ~kept, RESULTS.attempts_exhausted, info.result)
        after = replace(
            proposed,
            model=model,
            opt_state=opt_state,
            recovery_state=_BacktrackState(state.ground, record),
            step_scale=self._scale(before.step_scale, heals, cut),
            clip_norm=clip_norm,
        )
        return after, replace(info, result=result)

    def _treated(
        self, record: Record, back: Flag, heals: Flag
    ) -> tuple[Record, Flag, Flag]:
        """What a way back, counted in `record` already, changes there; whether it
        shortens the steps, and draws parameters anew. `heals`: whether cuts heal."""

        def moved(count, cut):
            undone = (heals & (count > 0)).astype(jnp.int32)
            return count + cut.astype(jnp.int32) - undone

        unhealed = moved(record.unhealed, back)
        due = jnp.minimum(record.attempts, unhealed - self.retries)

        def takes(remedy):
            if remedy not in self.remedies:
                return jnp.array(False)
            return back & (due > self.remedies.index(remedy))

        cut, redrawn = takes(Remedy.SHORTEN), takes(Remedy.REDRAW)
        record = record.change(unhealed=unhealed, cuts=moved(record.cuts, cut))
        if Remedy.CLIP in self.remedies:
            lowered = moved(record.lowered, takes(Remedy.CLIP))
            record = record.change(lowered=lowered)
        if Remedy.REDRAW in self.remedies:
            lowest = jnp.where(redrawn, jnp.inf, record.lowest)
            record = record.change(lowest=lowest)
        return record, cut, redrawn

    @property
    def spikes(self) -> Spikes:
        """Which norm of a gradient is one."""
        return Spikes(self.spike_quantile, self.spike_factor, self.spike_after)

    def _bound(self, record: Record) -> Scalar:
        """That of the norm of the next gradient."""
        bound = jnp.minimum(self.max_grad_norm, record.spike_norm)
        if Remedy.CLIP not in self.remedies:
            return bound
        return self.factor ** record.lowered.astype(bound.dtype) * bound

    def _judge(self, record: Record, info: StepInfo) -> StepInfo:
        limit = jnp.minimum(self.max_loss, self._risen(record))
        loss = _unweighted(info).astype(limit.dtype)
        result = _unless(info.result, loss > limit, RESULTS.exploded)
        if not self.clips:
            large = info.grad_norm > record.spike_norm
            spiked = large & (record.failures < _MAX_SPIKES)
            result = _unless(result, spiked, RESULTS.spiked)
        return replace(info, result=result)

    def _risen(self, record: Record) -> Scalar:
        # Nothing follows from the ratio to a loss that is zero, or negative.
        return jnp.where(record.lowest > 0, self.max_rise * record.lowest, jnp.inf)

    def _grown(self, start: PyTree, end: PyTree) -> Flag:
        old, new = (eqx.filter(m, trainable(m)) for m in (start, end))
        # What does not move, since it is not trained, is no measure of what does.
        moved = lambda x, y: jnp.where(x != y, x, 0)
        before = tree_norm(jtu.tree_map(moved, old, new))
        after = tree_norm(jtu.tree_map(moved, new, old))
        limit = self.max_growth * jnp.maximum(before, 1)
        return jnp.isfinite(after) & (after > limit)

    def _counted(
        self, record: Record, info: StepInfo, kept: Flag, back: Flag
    ) -> Record:
        norm, known = info.grad_norm, record.observed
        use = kept & (norm > 0)
        loss = _unweighted(info).astype(record.lowest.dtype)
        # One too many in a row that large: the norms begin anew there.
        large = (norm > record.spike_norm) & (not self.clips)
        level = self.spikes.followed(record.norm_quantile, norm, known, anew=large)
        level = jnp.where(use, level, record.norm_quantile)
        observed = known + use.astype(jnp.int32)
        return record.change(
            healthy=jnp.where(kept, record.healthy + 1, 0),
            # After a way back the model is the ground: it has not failed yet.
            failures=jnp.where(kept | back, 0, record.failures + 1),
            attempts=record.attempts + back.astype(jnp.int32),
            lowest=jnp.where(kept, jnp.minimum(record.lowest, loss), record.lowest),
            norm_quantile=level,
            spike_norm=self.spikes.bound(level, observed),
            observed=observed,
        )

    def _scale(self, scale: Scalar, heals: Flag, cut: Flag) -> Scalar:
        healed = jnp.where(heals, scale / self.factor, scale)
        return jnp.where(cut, self.factor * scale, healed)

    def anchor(self, start, end):
        before, record = start.recovery_state.record, end.recovery_state.record
        # Nobody has looked at the last update: a run must not end on a NaN.
        grown = self._grown(start.model, end.model)
        broken = grown | ~tree_allfinite(end.model)
        back = record.faults.counts > before.faults.counts
        # Not after a single kept step: with a deterministic loss the first step after
        # a way back is always kept, and the attempts would never be used up.
        steady = record.healthy >= _MIN_HEALTHY
        sound = steady & ~broken & ~back[CAUSES.index("rolled_back")]
        ground = tree_where(
            sound, (start.model, start.opt_state), end.recovery_state.ground
        )
        attempts = jnp.where(sound, 0, record.attempts + broken.astype(jnp.int32))
        again = (attempts > self.max_attempts) & (record.reinits < self.max_reinits)
        record = record.change(attempts=attempts)
        record, cut, redrawn = self._treated(record, broken, jnp.array(False))
        redrawn = (redrawn & jnp.any(record.suspects)) | again
        model, opt_state = tree_where(
            broken | again,
            (redraw_if(redrawn, ground[0], record.suspects, end), ground[1]),
            (end.model, end.opt_state),
        )
        faults = record.faults.count(
            exploded=grown, rolled_back=broken, reinitialised=redrawn
        )
        record = record.change(
            suspects=record.suspects & ~(sound | again),
            attempts=jnp.where(again, 0, attempts),
            reinits=record.reinits + again.astype(jnp.int32),
            # The next chunk may have other points, at which the loss is another.
            lowest=jnp.where(again, jnp.inf, self._risen(record)),
            faults=faults.went_back(end.step - 1, broken | again),
        )
        scale = jnp.where(cut, self.factor * end.step_scale, end.step_scale)
        return replace(
            end,
            model=model,
            opt_state=opt_state,
            recovery_state=_BacktrackState(ground, record),
            step_scale=scale,
            clip_norm=None if end.clip_norm is None else self._bound(record),
        )


def _unweighted(info: StepInfo) -> Scalar:
    terms = list(info.terms.values())
    return sum(terms[1:], terms[0])


def _unless(result: RESULTS, flag: Flag, cause: RESULTS) -> RESULTS:
    """`cause` where a step that was good so far has the `flag`."""
    return RESULTS.where(flag & (result == RESULTS.successful), cause, result)
