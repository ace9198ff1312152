"""The documented door to hierarchies of widths, for modules of NNX and of Equinox."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optax
from flax import nnx
from jaxtyping import Array

from ..._misc import check_count
from ..._problem.supervised import mse
from ..._transfer.base import make_plan, prolongate_model, restrict_model
from ..._transfer.widen import Widen
from ...core._strict import strict
from ...neural.base import StandardMLP
from ...neural.fno import FNO
from ...nnx.models import as_pytree
from ._levels import AbstractLevels, as_model, check_epochs, check_levels


__all__ = [
    "CascadeTrainer",
    "MultilevelAdam",
    "MultilevelConfig",
    "create_network_hierarchy",
    "prolongate",
    "restrict",
]


def __dir__():
    return __all__


@strict
@dataclasses.dataclass(frozen=True)
class MultilevelConfig:
    """How many levels there are, and how long each is trained.

    **Arguments:**

    - `num_levels`: the number of networks.
    - `coarsening_factor`: what the widths are multiplied by from one level to the next
        coarser one.
    - `level_epochs`: for each level, coarsest first.
    - `warmup_epochs`: further epochs at the finest level.
    """

    num_levels: int = 3
    coarsening_factor: int | float = 0.5
    level_epochs: Sequence[int] = (100, 200, 300)
    warmup_epochs: int = 0

    def __post_init__(self):
        check_levels(self.num_levels, float(self.coarsening_factor))
        check_epochs(self.level_epochs, self.num_levels)
        check_count("warmup_epochs", self.warmup_epochs, least=0)


def create_network_hierarchy(
    input_dim: int,
    output_dim: int,
    base_hidden_dims: Sequence[int],
    num_levels: int,
    coarsening_factor: int | float = 0.5,
    *,
    activation: str | Callable[[Array], Array] = "gelu",
    rngs: nnx.Rngs,
) -> list[StandardMLP]:
    """Networks of growing width, the coarsest first, the last with `base_hidden_dims`.

    **Arguments:**

    - `input_dim`, `output_dim`: of all of them.
    - `base_hidden_dims`: the widths of the hidden layers of the finest.
    - `num_levels`: how many there are.
    - `coarsening_factor`: `k` levels below the finest, a width `w` is
        `max(int(w * coarsening_factor**k), 1)`.
    - `activation`, `rngs`: as in [`StandardMLP`][].
    """
    check_levels(num_levels, float(coarsening_factor))
    hierarchy = []
    for k in reversed(range(num_levels)):
        widths = [max(int(w * coarsening_factor**k), 1) for w in base_hidden_dims]
        sizes = [input_dim, *widths, output_dim]
        hierarchy.append(StandardMLP(sizes, activation, rngs=rngs))
    return hierarchy


def prolongate(coarse: Any, fine: Any) -> Any:
    """A model of the size of `fine` that is the function `coarse`, to rounding.

    New units are alive: they have a gradient at once. Neither model is changed.

    **Raises:** `ValueError` if `coarse` is not the smaller one of the two in every
    layer, or if they differ in depth or activation.
    """
    _check_alike(coarse, fine)
    small, large = as_pytree(coarse), as_pytree(fine)
    return as_model(prolongate_model(_widen(coarse), small, large))


def restrict(fine: Any, coarse: Any) -> Any:
    """A model of the size of `coarse` that is close to `fine`; the very model that
    `fine` was prolongated from, if it was. Neither model is changed."""
    _check_alike(coarse, fine)
    small, large = as_pytree(coarse), as_pytree(fine)
    return as_model(restrict_model(_widen(coarse), large, small))


def MultilevelAdam(learning_rate: int | float = 1e-3) -> optax.GradientTransformation:
    """Adam. Its moments are carried between levels, as those of any optimizer are."""
    return optax.adam(learning_rate)


class CascadeTrainer(AbstractLevels):
    """Trains networks of growing width, each from where the one before it arrived."""

    def __init__(
        self,
        *,
        input_dim: int | None = None,
        output_dim: int | None = None,
        base_hidden_dims: Sequence[int] | None = None,
        config: MultilevelConfig | None = None,
        activation: str | Callable[[Array], Array] = "gelu",
        rngs: nnx.Rngs | None = None,
        hierarchy: Sequence[Any] | None = None,
        optimizer: optax.GradientTransformation | None = None,
        prolongate_fn: Callable[[Any, Any], Any] | None = None,
        state_transition_fn: Callable[[Any, Any, Any], Any] | None = None,
    ):
        """**Arguments:** either those of [`create_network_hierarchy`][] (`rngs` of seed
        0 unless given), or

        - `hierarchy`: models, coarsest first.

        and in both cases

        - `config`: how long each level is trained, and for the first way how many there
            are.
        - `optimizer`: an optax optimizer; `MultilevelAdam()` unless given.
        - `prolongate_fn`: maps a coarse model and the next finer one to the finer one
            to go on with; [`prolongate`][] unless given.
        - `state_transition_fn`: maps the state of the optimizer, the coarse model and
            the finer one to the state of the optimizer to go on with. Unless given, the
            moments follow the parameters, as [`prolongate`][] of the library does it.

        **Raises:** `TypeError` if it is neither of the two, or both.
        """
        made = (input_dim, output_dim, base_hidden_dims)
        if (hierarchy is None) == any(x is None for x in made):
            raise TypeError(
                "Give `input_dim`, `output_dim` and `base_hidden_dims`, or `hierarchy`."
            )
        if hierarchy is None:
            config = MultilevelConfig() if config is None else config
            hierarchy = create_network_hierarchy(
                input_dim,  # pyright: ignore[reportArgumentType]
                output_dim,  # pyright: ignore[reportArgumentType]
                base_hidden_dims,  # pyright: ignore[reportArgumentType]
                config.num_levels,
                config.coarsening_factor,
                activation=activation,
                rngs=nnx.Rngs(0) if rngs is None else rngs,
            )
        if config is None:
            epochs = [100 * (i + 1) for i in range(len(hierarchy))]
            config = MultilevelConfig(len(hierarchy), level_epochs=epochs)
        for coarse, fine in zip(hierarchy[:-1], hierarchy[1:], strict=True):
            if prolongate_fn is None:
                _check_fit(coarse, fine)
        self.config = config
        *coarser, finest = config.level_epochs
        super().__init__(
            hierarchy,
            MultilevelAdam() if optimizer is None else optimizer,
            _widen(hierarchy[0]),
            [*coarser, finest + config.warmup_epochs],
            mse,
            prolongate_fn,
            state_transition_fn,
        )

    def level_data(self, inputs, targets):
        return inputs, targets


def _check_fit(coarse: Any, fine: Any) -> None:
    """Raises unless one can be prolongated to the other; only shapes are looked at."""
    _check_alike(coarse, fine)
    make_plan(_widen(coarse), as_pytree(coarse), as_pytree(fine))


def _widen(model: Any) -> Widen:
    return Widen(channels_last=isinstance(model, nnx.Module | FNO))


def _check_alike(coarse: Any, fine: Any) -> None:
    if isinstance(coarse, nnx.Module) != isinstance(fine, nnx.Module):
        raise TypeError(
            "`coarse` and `fine` must be of one kind, got "
            f"{type(coarse).__name__} and {type(fine).__name__}."
        )
    one, other = (getattr(model, "activation", None) for model in (coarse, fine))
    if isinstance(coarse, nnx.Module) and one != other:
        raise ValueError(
            f"`coarse` has the activation {one!r} and `fine` {other!r}, so they cannot "
            "be the same function. Build both with the same activation."
        )
