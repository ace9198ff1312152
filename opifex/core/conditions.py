"""The documented names of conditions.

A value is a number, or a function of the coordinates, time last: `lambda x, t: ...`.
"""

from .._problem.conditions import (
    Dirichlet as DirichletBC,
    Initial as InitialCondition,
    Neumann as NeumannBC,
    Periodic as PeriodicBC,
    Robin as RobinBC,
)


__all__ = [
    "DirichletBC",
    "InitialCondition",
    "NeumannBC",
    "PeriodicBC",
    "RobinBC",
]


def __dir__():
    return __all__
