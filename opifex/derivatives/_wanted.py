"""Which derivatives are wanted: the words that all ways of taking them share."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias


# The coordinates to differentiate by, in order: (0, 0, 1) is u_xxy of u(x, y).
Index: TypeAlias = tuple[int, ...]


class Collapsed(NamedTuple):
    """A weighted sum of derivatives of one order, wanted only as a whole.

    It costs a single coefficient of the highest order where its terms would cost one
    each: the collapsed Taylor mode of Dangel et al., "Collapsing Taylor mode automatic
    differentiation", NeurIPS 2025; for the Laplacian, the forward Laplacian of Li et
    al., "A computational framework for neural network-based variational Monte Carlo
    with Forward Laplacian", Nature Machine Intelligence 6, 2024.
    """

    terms: tuple[tuple[Index, float], ...]

    # After every index, so that a dictionary of derivatives can be a pytree.
    def __lt__(self, other: Any) -> bool:
        return isinstance(other, Collapsed) and self.terms < other.terms

    def __gt__(self, other: Any) -> bool:
        return not isinstance(other, Collapsed) or self.terms > other.terms


Wanted: TypeAlias = Index | Collapsed


def laplacian(over: Iterable[int]) -> Collapsed:
    """The sum of the second derivatives by each of some coordinates."""
    return Collapsed(tuple(((i, i), 1.0) for i in over))


def bilaplacian(over: Iterable[int]) -> Collapsed:
    """The Laplacian of the Laplacian over some coordinates."""
    over = tuple(over)
    pure = [((i, i, i, i), 1.0) for i in over]
    mixed = [((i, i, j, j), 2.0) for i, j in itertools.combinations(over, 2)]
    return Collapsed((*pure, *mixed))


def coordinates_of_laplacian(wanted: Wanted) -> tuple[int, ...]:
    """The coordinates that `wanted` is a Laplacian over; none if it is not one."""
    if not isinstance(wanted, Collapsed):
        return ()
    over = tuple(index[0] for index, _ in wanted.terms)
    return over if wanted == laplacian(over) else ()


def terms_of(wanted: Wanted) -> tuple[tuple[Index, float], ...]:
    """The derivatives that make up `wanted`, with their weights."""
    return wanted.terms if isinstance(wanted, Collapsed) else ((wanted, 1.0),)


def order_of(wanted: Iterable[Wanted]) -> int:
    """The highest order among them."""
    return max((len(i) for w in wanted for i, _ in terms_of(w)), default=0)


def factorial(index: Index) -> int:
    """By how much a derivative exceeds its Taylor coefficient."""
    return math.prod(math.factorial(n) for n in Counter(index).values())


def parts(index: Index) -> list[tuple[Index, Index]]:
    """All ways to share out an index over two, neither of them empty."""
    counts = sorted(Counter(index).items())
    ways = itertools.product(*(range(n + 1) for _, n in counts))
    split = []
    for way in ways:
        taken = zip(counts, way, strict=True)
        first = tuple(i for (i, _), m in taken for _ in range(m))
        rest = Counter(index) - Counter(first)
        second = tuple(sorted(rest.elements()))
        if first and second:
            split.append((first, second))
    return split


def cofactors(wanted: Wanted) -> dict[int, Collapsed]:
    """What the slope by each coordinate meets in the product rule for `wanted`.

    From the fourth order on a collapsed sum needs the derivatives of the order below
    its own only in such sums, which are fewer: for the bilaplacian the two of the
    gradient of the Laplacian, in place of four third derivatives.
    """
    if not isinstance(wanted, Collapsed) or order_of([wanted]) < 4:
        return {}
    sums: dict[int, dict[Index, float]] = {}
    for index, weight in wanted.terms:
        for i in sorted(set(index)):
            at = index.index(i)
            rest = index[:at] + index[at + 1 :]
            share = weight * factorial(index) / factorial(rest)
            terms = sums.setdefault(i, {})
            terms[rest] = terms.get(rest, 0.0) + share
    return {i: Collapsed(tuple(sorted(terms.items()))) for i, terms in sums.items()}


def shares(wanted: Wanted) -> dict[tuple[Wanted, Wanted], float]:
    """Which coefficients of two factors make up that of their product, and how often.

    Coefficients are derivatives over the factorial of their index; a collapsed one is a
    sum of derivatives.
    """
    found: dict[tuple[Wanted, Wanted], float] = defaultdict(float)
    sums = cofactors(wanted)
    for i, cofactor in sums.items():
        found[(i,), cofactor] += 1.0
        found[cofactor, (i,)] += 1.0
    for index, weight in terms_of(wanted):
        often = weight * factorial(index) if isinstance(wanted, Collapsed) else 1.0
        for pair in parts(index):
            if not sums or min(map(len, pair)) > 1:
                found[pair] += often
    return dict(found)


def closed(wanted: Iterable[Wanted]) -> set[Wanted]:
    """`wanted`, and all that is met on the way to it: u_xx needs u_x."""
    found: set[Wanted] = set()
    ahead = list(wanted)
    while ahead:
        key = ahead.pop()
        if key not in found:
            found.add(key)
            ahead += [one for pair in shares(key) for one in pair]
    return found
