import abc
from dataclasses import replace
from typing import Generic

import equinox as eqx
from jaxtyping import Array

from .._custom_types import Batch, Count, Key, Model, SamplerState
from .._misc import unknown_name
from .._problem.base import AbstractProblem
from .._state import TrainingState
from ..geometry.base import AbstractDomain


class AbstractSampler(eqx.Module, Generic[SamplerState, Batch]):
    """Where to look: it hands out the batch of every step."""

    @abc.abstractmethod
    def init(self, key: Key) -> SamplerState:
        """The points (or nothing) that are carried between steps."""

    @abc.abstractmethod
    def batch(self, state: SamplerState, key: Key, step: Count) -> Batch:
        """The batch of one step. Called at every step; pure and cheap."""

    @abc.abstractmethod
    def resample(
        self, state: SamplerState, problem: AbstractProblem, model: Model, key: Key
    ) -> SamplerState:
        """New points, once a chunk. May evaluate the model. Shapes never change."""


def resample(
    sampler: AbstractSampler, problem: AbstractProblem, state: TrainingState
) -> TrainingState:
    """Ends a chunk: renews the points and counts the epoch.

    **Arguments:**

    - `sampler`: decides where the new points go.
    - `problem`: asked for its residuals, if the sampler wants them.
    - `state`: as the last step left it.

    **Returns:** the state to begin the next chunk with.
    """
    points = sampler.resample(
        state.sampler_state, problem, state.model, state.key_for("resample")
    )
    progress = replace(state.progress, epoch=state.progress.epoch + 1)
    return replace(state, sampler_state=points, progress=progress)


def check_domains(
    domains: dict[str, AbstractDomain], num_points: dict[str, int]
) -> None:
    """Raises unless every domain is told how many points it gets, and no other."""
    if not domains:
        raise ValueError("`domains` is empty; name at least one set of points.")
    for name in num_points:
        if name not in domains:
            raise ValueError(unknown_name("num_points", name, domains))
    for name in domains:
        count = num_points.get(name)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(
                f"`num_points[{name!r}]` must be a whole number of at least 1, got "
                f"{count!r}."
            )


PointSets = dict[str, Array]
