"""How jets go through the primitives of JAX.

A rule maps the inputs of an equation to its outputs. An input is a [`Jet`][], with the
points last, or an array that is the same at all points.
"""

import logging

from jax.extend.core import JaxprEqn

from ._algebra import Algebra, Jet
from ._arithmetic import ARITHMETIC
from ._elementwise import ELEMENTWISE, RECURRENCES
from ._fallback import nested
from ._functions import COMPARISONS, elementwise
from ._products import dot_general
from ._structure import STRUCTURE
from ._values import Rule, Value, values_only


_log = logging.getLogger("opifex")


def apply_rule(algebra: Algebra, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
    """The outputs of one equation, at least one of its inputs being a jet."""
    name = eqn.primitive.name
    if not any(isinstance(x, Jet) and x.coefficients for x in inputs):
        return values_only(algebra, eqn, inputs)
    if name in RULES:
        return RULES[name](algebra, eqn, inputs)
    _log.debug("No rule for %s: differentiating it by nested forward mode.", name)
    return nested(algebra, eqn, inputs)


RULES: dict[str, Rule] = {
    **dict.fromkeys([*RECURRENCES, *ELEMENTWISE, "integer_pow"], elementwise),
    **dict.fromkeys([*COMPARISONS, "stop_gradient", "argmax", "argmin"], values_only),
    **ARITHMETIC,
    **STRUCTURE,
    "dot_general": dot_general,
}
