import abc
from collections.abc import Sequence
from typing import Generic

import equinox as eqx

from .._custom_types import Terms, WeightingState


class AbstractWeighting(eqx.Module, Generic[WeightingState]):
    """How much each term of the loss counts."""

    @abc.abstractmethod
    def init(self, names: Sequence[str]) -> WeightingState:
        """What is remembered between steps, for terms of these names."""

    @abc.abstractmethod
    def weights(self, state: WeightingState, terms: Terms) -> Terms:
        """A weight for every one of `terms`, constant under differentiation.

        Raises if a name was given that no term has.
        """

    @abc.abstractmethod
    def update(self, state: WeightingState, terms: Terms) -> WeightingState:
        """The state for the next step, from the terms of this one."""
