from .._misc import unknown_name
from .base import AbstractDerivatives
from .forward_laplacian import ForwardLaplacian
from .jet import Jet
from .nested import Forward, ForwardReverse, Nested
from .taylor import Taylor


# By name. The rule of "auto" is that of `Taylor`, which is the fastest in every case
# that was measured, takes any network, and splits a Laplacian over many coordinates.
DERIVATIVES: dict[str, AbstractDerivatives] = {
    "auto": Taylor(),
    "taylor": Taylor(),
    "forward": Forward(),
    "forward-reverse": ForwardReverse(),
    "nested": Nested(),
    "jet": Jet(),
    "forward-laplacian": ForwardLaplacian(),
}


def resolve(derivatives: AbstractDerivatives | str) -> AbstractDerivatives:
    """The way of taking derivatives that is meant; raises for a name unknown."""
    if isinstance(derivatives, AbstractDerivatives):
        return derivatives
    if derivatives not in DERIVATIVES:
        raise ValueError(unknown_name("derivatives", derivatives, DERIVATIVES))
    return DERIVATIVES[derivatives]
