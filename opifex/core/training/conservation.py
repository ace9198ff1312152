"""What training should conserve."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..._misc import check_count, check_number
from .._checks import change, check_callable, check_names
from .._strict import strict


LAWS = ("mass", "momentum", "energy", "symmetry")
REFERENCES = ("target", "input")
ENFORCEMENTS = ("penalty", "augmented_lagrangian")


def _reflected(points: Any) -> Any:
    return -points


def _unchanged(fields: Any) -> Any:
    return fields


@strict
@dataclasses.dataclass(frozen=True)
class ConservationConfig:
    """Quantities that training should conserve.

    **Arguments:**

    - `laws`: names out of `LAWS`, and of `quantities`, which count as listed.
    - `energy_tolerance`, `momentum_tolerance`, `mass_tolerance`, `symmetry_tolerance`:
        how far each may stray, in its own unit.
    - `weight`: of the penalty of each law in the loss.
    - `quantities`: by name, functions of the points `(points, dim)` and the fields
        `(points, fields)` that give what is conserved. One of the name of a built-in
        law replaces it.
    - `reference`: what a quantity should be that of: the `"target"`, or the `"input"`,
        for an operator that evolves a state.
    - `enforcement`: `"penalty"`, or `"augmented_lagrangian"`: then `weight` is that to
        begin with, and a multiplier for the mean of each quantity is added, so that
        this mean comes to be conserved whatever else is in the loss.
    - `multiplier_frequency`: how many epochs lie between two updates of the multipliers
        (10), at each of which the weight grows `weight_growth` times (2), to at most
        `max_weight` (100 times `weight`).
    - `symmetry_of_points`, `symmetry_of_fields`: what the symmetry makes of points
        and of fields; a reflection that leaves the fields what they are, unless given.
    - `quadrature_weights`: of the points of a sample, for the integrals; equal weights
        that sum to one, unless given.
    """

    laws: Sequence[str] = ()
    energy_tolerance: int | float = 0.0
    momentum_tolerance: int | float = 0.0
    mass_tolerance: int | float = 0.0
    symmetry_tolerance: int | float = 0.0
    weight: int | float = 1.0
    quantities: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    reference: str = "target"
    enforcement: str = "penalty"
    multiplier_frequency: int | None = None
    weight_growth: int | float | None = None
    max_weight: int | float | None = None
    symmetry_of_points: Callable = _reflected
    symmetry_of_fields: Callable = _unchanged
    quadrature_weights: Sequence[int | float] | None = None

    def __post_init__(self):
        check_names("laws", self.laws, {*LAWS, *self.quantities})
        laws = tuple(dict.fromkeys([*self.laws, *self.quantities]))
        if not laws:
            raise ValueError(f"`laws` is empty. Give some out of {list(LAWS)}.")
        for law in LAWS:
            self._check_tolerance(law, laws)
        for name, quantity in self.quantities.items():
            check_callable(f"quantities[{name!r}]", quantity)
        check_number("weight", self.weight, 0)
        check_names("reference", [self.reference], REFERENCES)
        check_names("enforcement", [self.enforcement], ENFORCEMENTS)
        self._check_multipliers()
        for name in ("symmetry_of_points", "symmetry_of_fields"):
            check_callable(name, getattr(self, name))
        weights = self.quadrature_weights
        if weights is not None:
            weights = tuple(float(w) for w in weights)
            for i, w in enumerate(weights):
                check_number(f"quadrature_weights[{i}]", w, 0)
        quantities = dict(self.quantities)
        change(self, laws=laws, quantities=quantities, quadrature_weights=weights)

    @property
    def multiplies(self) -> bool:
        """Whether there are multipliers."""
        return self.enforcement == "augmented_lagrangian"

    @property
    def multiplier_settings(self) -> tuple[int, int | float, int | float]:
        """`multiplier_frequency`, `weight_growth` and `max_weight`."""
        given = self.multiplier_frequency, self.weight_growth, self.max_weight
        every, growth, most = given
        return (
            10 if every is None else every,
            2.0 if growth is None else growth,
            100 * self.weight if most is None else most,
        )

    def _check_multipliers(self) -> None:
        settings = "multiplier_frequency", "weight_growth", "max_weight"
        if self.multiplies:
            check_number("weight", self.weight, 0, open_low=True)
            every, growth, most = self.multiplier_settings
            check_count("multiplier_frequency", every)
            check_number("weight_growth", growth, 1)
            check_number("max_weight", most, self.weight)
            return
        for name in settings:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` = {getattr(self, name)!r} has no meaning for "
                    f"`enforcement` = {self.enforcement!r}. Leave it out, or choose "
                    "'augmented_lagrangian'."
                )

    def _check_tolerance(self, law: str, laws: Sequence[str]) -> None:
        name = f"{law}_tolerance"
        value = getattr(self, name)
        check_number(name, value, 0)
        if value > 0 and law not in laws:
            raise ValueError(
                f"`{name}` = {value!r} has no law to go with: `laws` are {list(laws)}. "
                f"Add {law!r} to `laws`, or leave it out."
            )

    def tolerance(self, law: str) -> int | float:
        """How far a law may stray: that of its name, and none for other quantities."""
        return getattr(self, f"{law}_tolerance") if law in LAWS else 0.0
