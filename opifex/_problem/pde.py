from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Inexact

from .._custom_types import Key
from .._misc import Frozen, unknown_name
from ..derivatives import Residual
from ..geometry.base import AbstractDomain
from ..geometry.product import TimeProduct
from .base import AbstractResidualProblem
from .coefficients import Inverse, needed, parted, taken
from .conditions import (
    AbstractCondition,
    Measured,
    part_of,
    Periodic,
    pieces_of,
    Setting,
    weighted,
)
from .conservation import Conserved
from .exact import Constrained, make_ansatz


class PDE(AbstractResidualProblem):
    """Equations on a domain, with conditions on its boundary.

    The sets of points are `"interior"`, one for each part of the boundary that has a
    condition, by its name, and `"times"` if something is conserved; `domains` has them
    all, as the samplers want them. A term of the loss is called `"interior"` (or
    `"interior/0"`, `"interior/1"`, ... for a system), `"left/u"` for a value on the
    left, `"left/u_n"` for a normal slope, `"initial/u_t"`, `"data"`, `"times/energy"`,
    and so on.

    The model maps a point `(dim,)` to the fields; it may be an [`Inverse`][], whose
    coefficients go to the equation, to the functions of soft conditions and to the
    conserved densities that have keyword arguments of their names.

    **Arguments:**

    - `domain`: where the equation holds. With time, it is `space * Interval(t0, t1)`.
    - `equation`: from [`residual`][]. Its coordinates are the columns of the points.
    - `conditions`: on the boundary, and at the start.
    - `measured`: what is known at some points inside.
    - `conserved`: what does not change in time.
    - `free`: parts of the boundary where nothing is to be prescribed. `"final"` always
        is one.
    - `harmonics`: how many sines and cosines an exactly periodic coordinate becomes, or
        how many for each, by name.

    **Raises:** `ValueError` for a part of the boundary or a field that does not exist,
    for a part to which the same is prescribed twice, or nothing, and for points that
    have not the coordinates of the equation.
    """

    domain: AbstractDomain
    equation: Residual
    conditions: tuple[AbstractCondition, ...]
    measured: tuple[Measured, ...]
    conserved: tuple[Conserved, ...]
    free: tuple[str, ...] = eqx.field(static=True)
    harmonics: int | tuple[tuple[str, int], ...] = eqx.field(static=True)
    axes: tuple[tuple[str, int], ...] = eqx.field(static=True)

    def __init__(
        self,
        domain: AbstractDomain,
        equation: Residual,
        conditions: Iterable[AbstractCondition] = (),
        *,
        measured: Iterable[Measured] = (),
        conserved: Iterable[Conserved] = (),
        free: Iterable[str] = (),
        harmonics: int | dict[str, int] = 1,
    ):
        self.domain = domain
        self.equation = equation
        self.conditions = tuple(conditions)
        self.measured = tuple(measured)
        self.conserved = tuple(conserved)
        self.free = (free,) if isinstance(free, str) else tuple(free)
        by_name = isinstance(harmonics, dict)
        self.harmonics = tuple(sorted(harmonics.items())) if by_name else harmonics
        check_coordinates(domain, equation, self.measured)
        check_coverage(domain, equation.fields, self.conditions, self.free)
        # Worked out here, while the numbers of the domain are known.
        periodic = [c for c in self.conditions if isinstance(c, Periodic)]
        self.axes = tuple((c.boundary, c.axis(domain)) for c in periodic)

    def __check_init__(self):
        for part in (*self.conditions, *self.measured):
            self.setting.index(part.field)
        for condition in self.conditions:
            check_exact(condition)
        for law in self.conserved:
            law.check(self.setting)
        check_labels(self._labels())
        make_ansatz(self.setting, self.conditions, self.harmonics)

    @property
    def setting(self) -> Setting:
        return self.setting_with({})

    def setting_with(self, coefficients: dict[str, Array]) -> Setting:
        """What the conditions are told, with the values of the coefficients."""
        equation = self.equation
        return Setting(
            self.domain,
            equation.coords,
            equation.fields,
            equation.derivatives,
            self.axes,
            coefficients,
        )

    def _labels(self) -> list[str]:
        """The names of the terms, but for those of the equation."""
        fields = self.equation.fields
        soft = [c.label(fields) for c in self.conditions if not c.exact]
        laws = [f"times/{law.name}" for law in self.conserved]
        return soft + [data.name for data in self.measured] + laws

    @property
    def domains(self) -> dict[str, AbstractDomain]:
        """The sets of points that the terms are evaluated on, for a sampler."""
        soft = [c.boundary for c in self.conditions if not c.exact]
        sets = {"interior": self.domain}
        sets |= {name: part_of(self.domain, name) for name in soft}
        if self.conserved and isinstance(self.domain, TimeProduct):
            sets["times"] = self.domain.time
        return sets

    @property
    def features(self) -> int:
        """How many numbers a network is given that is passed to `impose`."""
        return make_ansatz(self.setting, self.conditions, self.harmonics).features

    def impose(self, network: Callable) -> Constrained:
        """The model that meets the exact conditions, whatever the network.

        **Arguments:**

        - `network`: maps `(features,)` to `(fields,)`.
        """
        if isinstance(network, Inverse):
            raise TypeError(
                "`network` is an `Inverse` already. Impose the conditions first: "
                "`Inverse(problem.impose(network), coefficients)`."
            )
        ansatz = make_ansatz(self.setting, self.conditions, self.harmonics)
        return Constrained(network, Frozen(ansatz))

    def residuals(self, model, batch):
        return self._residuals(model, batch, None)

    def stochastic_residuals(self, model, batch, key):
        return self._residuals(model, batch, key)

    def _residuals(
        self, model: Any, batch: dict[str, Array], key: Key | None
    ) -> dict[str, Inexact[Array, " _points"]]:
        network, coefficients = self.parts(model)
        setting = self.setting_with(coefficients)
        out = self.equations(model, _points(batch, "interior"), key)
        for condition in self.conditions:
            if not condition.exact:
                points = _points(batch, condition.boundary)
                residual = condition.residual(setting, network, points)
                label = condition.label(self.equation.fields)
                out[label] = weighted(condition.weight, residual)
        for data in self.measured:
            out[data.name] = weighted(data.weight, data.residual(setting, network))
        for law in self.conserved:
            excess = law.residual(setting, network, _points(batch, "times")[:, 0])
            out[f"times/{law.name}"] = weighted(law.weight, excess)
        return out

    def equations(
        self, model: Any, points: Array, key: Key | None = None
    ) -> dict[str, Inexact[Array, " _points"]]:
        """What the equations alone leave over at some points."""
        network, coefficients = self.parts(model)
        given = taken(self.equation.function, coefficients)
        # For derivatives that are random: always the same draw, so that this is a
        # function of the model and the points.
        key = jr.key(0) if key is None else key
        out = self.equation(network, points, key=key, **given)
        if not isinstance(out, tuple):
            return {"interior": out}
        return {f"interior/{i}": r for i, r in enumerate(out)}

    def parts(self, model: Any) -> tuple[Any, dict[str, Array]]:
        """The network of a model and its coefficients; raises if they do not fit."""
        network, coefficients = parted(model)
        self._check_coefficients(coefficients)
        self._check_model(network)
        return network, coefficients

    def _check_coefficients(self, coefficients: dict[str, Array]) -> None:
        users = self._users()
        for name in coefficients:
            if not any(taken(user, {name: 0}) for user in users):
                raise ValueError(
                    f"`coefficients` has {name!r}, which neither "
                    f"`{self.equation.name}` nor a soft condition or a conserved "
                    "density takes. Make it a keyword argument: `def equation(u, x, *, "
                    f"{name})`."
                )
        for user in users:
            missing = [name for name in needed(user) if name not in coefficients]
            if missing:
                raise TypeError(
                    f"`{getattr(user, '__name__', user)}` needs the keyword arguments "
                    f"{missing}. Give them defaults, or train `Inverse(network, "
                    "{name: coefficient, ...})`, which supplies them."
                )

    def _users(self) -> list[Callable]:
        """The functions that may take coefficients."""
        users = [self.equation.function]
        users += [law.density.function for law in self.conserved]
        for condition in self.conditions:
            # The formula of an exact one is a part of the network.
            if not condition.exact:
                users += [x for x in vars(condition).values() if callable(x)]
        return users

    def _check_model(self, network: Any) -> None:
        exact = [c.boundary for c in self.conditions if c.exact]
        if exact and not isinstance(network, Constrained):
            raise TypeError(
                f"The conditions on {sorted(set(exact))} are exact, so `model` must be "
                f"what `problem.impose(network)` returns, got {type(network).__name__}."
            )


def check_coordinates(
    domain: AbstractDomain, equation: Residual, measured: Sequence[Measured]
) -> None:
    """Raises unless all points have a column for each coordinate."""
    if domain.dim != len(equation.coords):
        raise ValueError(
            f"`equation` has the coordinates {equation.coords}, but `domain` is of "
            f"dimension {domain.dim}. Name one coordinate a column of the points."
        )
    for data in measured:
        if data.points.shape[1] != domain.dim:
            raise ValueError(
                f"`measured` {data.name!r} has points of shape {data.points.shape}, "
                f"but `domain` is of dimension {domain.dim}. Give a column a "
                "coordinate."
            )


def check_exact(condition: AbstractCondition) -> None:
    """Raises if a condition that is exact asks for coefficients."""
    users = [x for x in vars(condition).values() if condition.exact and callable(x)]
    for name in (name for user in users for name in needed(user)):
        raise ValueError(
            f"The exact condition on {condition.boundary!r} needs the keyword argument "
            f"{name!r}, but coefficients are handed to soft conditions only. Drop "
            "`exact=True`."
        )


def check_labels(labels: Sequence[str]) -> None:
    """Raises unless the terms have different names."""
    for label in labels:
        if labels.count(label) > 1 or label.split("/")[0] == "interior":
            raise ValueError(
                f"Two terms of the loss would be called {label!r}. Give `name` to what "
                "is measured or conserved."
            )


def check_coverage(
    domain: AbstractDomain,
    fields: Sequence[str],
    conditions: Sequence[AbstractCondition],
    free: Sequence[str],
) -> None:
    """Raises unless every part of the boundary is prescribed something, once."""
    pieces = [name for name in domain.boundaries if name != "final"]
    for name in free:
        _check_piece("free", name, domain)
    seen: dict[tuple[str, str, str], str] = {}
    covered = {piece for name in free for piece in pieces_of(domain, name)}
    for condition in conditions:
        label = condition.label(fields)
        names = [condition.boundary]
        if isinstance(condition, Periodic):
            names.append(condition.partner)
        for name in names:
            _check_piece("boundary", name, domain)
            for piece in pieces_of(domain, name):
                spot = (piece, condition.field or fields[0], condition.kind)
                if spot in seen:
                    raise ValueError(
                        f"`conditions` prescribe {spot[1]!r} twice on {piece!r}: by "
                        f"{seen[spot]!r} and by {label!r}. Keep one of them."
                    )
                seen[spot] = label
                covered.add(piece)
    missing = [piece for piece in pieces if piece not in covered]
    if missing:
        raise ValueError(
            f"`conditions` prescribe nothing on {missing}. Add a condition there, or "
            f"name these parts in `free`."
        )


def _check_piece(argument: str, name: str, domain: AbstractDomain) -> None:
    known = [*domain.boundaries, "boundary"]
    if name not in known:
        raise ValueError(unknown_name(argument, name, known))


def _points(batch: dict[str, Array], name: str) -> Array:
    if name not in batch:
        raise ValueError(
            f"{unknown_name('batch', name, batch)} Give the sampler all sets of "
            "`problem.domains`."
        )
    return batch[name]
