"""The documented door to hierarchies of Fourier modes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.random as jr
import optax
from flax import nnx
from jaxtyping import Array

from ..._misc import check_count
from ..._problem.operator import coarsen
from ..._problem.supervised import relative_l2
from ..._transfer.base import prolongate_model, restrict_model
from ..._transfer.modes import PadModes
from ...core._strict import strict
from ...neural.activations import named_activation
from ...neural.fno import FNO
from ...nnx.models import as_pytree
from ...nnx.of_rows import OfRows
from ._levels import AbstractLevels, as_model, check_epochs


__all__ = [
    "MultilevelFNOConfig",
    "MultilevelFNOTrainer",
    "create_fno_hierarchy",
    "create_mode_hierarchy",
    "prolongate_fno_modes",
    "restrict_fno_modes",
]


def __dir__():
    return __all__


@strict
@dataclasses.dataclass(frozen=True)
class MultilevelFNOConfig:
    """How many levels there are, and how long each is trained.

    **Arguments:**

    - `num_levels`: the number of networks.
    - `base_modes`: how many modes the finest one keeps along each axis.
    - `mode_reduction_factor`: what that is divided by from one level to the next
        coarser one.
    - `level_epochs`: for each level, coarsest first.
    """

    num_levels: int = 3
    base_modes: int = 12
    mode_reduction_factor: int = 2
    level_epochs: Sequence[int] = (50, 100, 150)

    def __post_init__(self):
        create_mode_hierarchy(
            self.base_modes, self.num_levels, self.mode_reduction_factor
        )
        check_epochs(self.level_epochs, self.num_levels)


def create_mode_hierarchy(
    base_modes: int, num_levels: int, reduction_factor: int = 2
) -> list[int]:
    """Numbers of modes, the least first: `max(base_modes // reduction_factor**k, 1)`,
    `k` levels below the finest."""
    check_count("base_modes", base_modes)
    check_count("num_levels", num_levels)
    check_count("reduction_factor", reduction_factor)
    levels = reversed(range(num_levels))
    return [max(base_modes // reduction_factor**k, 1) for k in levels]


def create_fno_hierarchy(
    base_modes: int,
    width: int,
    input_dim: int,
    output_dim: int,
    num_levels: int,
    reduction_factor: int = 2,
    *,
    num_layers: int = 4,
    dim: int = 1,
    activation: str | Callable[[Array], Array] = "gelu",
    rngs: nnx.Rngs,
) -> list[OfRows]:
    """Fourier neural operators with more and more modes, the fewest first.

    They map functions on a grid, `(batch, *grid, input_dim)`, to such functions,
    `(batch, *grid, output_dim)`; see [`FNO`][].

    **Arguments:**

    - `base_modes`, `num_levels`, `reduction_factor`: as in
        [`create_mode_hierarchy`][].
    - `width`: how many channels the layers have.
    - `input_dim`, `output_dim`: how many channels the functions have.
    - `num_layers`: of each operator.
    - `dim`: how many axes the grid has.
    - `activation`, `rngs`: as in [`StandardMLP`][].
    """
    modes = create_mode_hierarchy(base_modes, num_levels, reduction_factor)
    sizes: dict[str, Any] = {"width": width, "num_layers": num_layers}
    sizes["activation"] = named_activation(activation)
    keys = [jr.wrap_key_data(jr.key_data(rngs.params())) for _ in modes]
    make = lambda m, key: FNO(dim, input_dim, output_dim, modes=m, key=key, **sizes)
    return [OfRows(make(m, key)) for m, key in zip(modes, keys, strict=True)]


def prolongate_fno_modes(coarse: Any, fine: Any) -> Any:
    """An operator with the modes of `fine` that is the function `coarse`, on every grid
    that has them. Neither operator is changed.

    **Raises:** `ValueError` if they differ in more than the modes, or if `coarse` has
    more of them.
    """
    return as_model(prolongate_model(PadModes(), as_pytree(coarse), as_pytree(fine)))


def restrict_fno_modes(fine: Any, coarse: Any) -> Any:
    """`fine` without the modes that `coarse` does not have: the exact inverse of
    [`prolongate_fno_modes`][]. Neither operator is changed."""
    return as_model(restrict_model(PadModes(), as_pytree(fine), as_pytree(coarse)))


class MultilevelFNOTrainer(AbstractLevels):
    """Trains an operator with few modes on a coarse grid, and adds modes and points.

    The loss is the relative L2 error.
    """

    def __init__(
        self,
        width: int,
        input_dim: int,
        output_dim: int,
        config: MultilevelFNOConfig | None = None,
        *,
        num_layers: int = 4,
        dim: int = 1,
        activation: str | Callable[[Array], Array] = "gelu",
        optimizer: optax.GradientTransformation | None = None,
        coarsen_grid: bool = True,
        periodic: bool = True,
        rngs: nnx.Rngs,
    ):
        """**Arguments:** those of [`create_fno_hierarchy`][], and

        - `config`: of the levels.
        - `optimizer`: an optax optimizer; Adam with a rate of 1e-3 unless given.
        - `coarsen_grid`: whether coarser levels are trained on coarser grids: as coarse
            as `mode_reduction_factor` makes them, as long as its powers divide the grid
            and the modes find room. That is where time is saved.
        - `periodic`: whether the grid is that of periodic functions, see [`coarsen`][].
        """
        self.config = MultilevelFNOConfig() if config is None else config
        self.coarsen_grid, self.periodic = coarsen_grid, periodic
        levels = self.config.num_levels, self.config.mode_reduction_factor
        hierarchy = create_fno_hierarchy(
            self.config.base_modes,
            width,
            input_dim,
            output_dim,
            *levels,
            num_layers=num_layers,
            dim=dim,
            activation=activation,
            rngs=rngs,
        )
        optimizer = optax.adam(1e-3) if optimizer is None else optimizer
        epochs = self.config.level_epochs
        super().__init__(hierarchy, optimizer, PadModes(), epochs, relative_l2)

    def level_data(self, inputs, targets):
        below = self.config.num_levels - 1 - self.current_level
        grid, stride = inputs.shape[1:-1], 1
        for _ in range(below if self.coarsen_grid else 0):
            wider = stride * self.config.mode_reduction_factor
            if not self._has_room(grid, wider):
                break
            stride = wider
        if stride == 1:
            return inputs, targets
        both = [coarsen(x, stride, periodic=self.periodic) for x in (inputs, targets)]
        return both[0], both[1]

    def _has_room(self, grid: Sequence[int], stride: int) -> bool:
        """Whether every `stride`-th point is a grid for the modes of this level."""
        modes = self.model.model.modes
        intervals = [n if self.periodic else n - 1 for n in grid]
        sizes = [n // stride + (not self.periodic) for n in intervals]
        divides = all(n % stride == 0 for n in intervals)
        return divides and all(s >= 2 * m for s, m in zip(sizes, modes, strict=True))
