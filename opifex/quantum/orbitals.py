"""The orbitals that a Hamiltonian fills, with derivatives, also at degeneracies."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._custom_types import Scalar
from .._misc import check_count


Blocks = tuple[Float[Array, "_functions _functions"], ...]

# In hartree. Gaps between filled and empty orbitals far below the first count as none:
# the response to what mixes them has no limit. Energies closer than the second differ
# by rounding errors, and the slope of the occupation stands in for the difference.
_NO_GAP, _CLOSE = 1e-6, 1e-4


class Filling(eqx.Module):
    """How many electrons there are, in pairs of opposite spin.

    **Arguments:**

    - `electrons`: how many.
    - `smearing`: the temperature of a Fermi-Dirac distribution, in hartree; at zero,
        the lowest orbitals are full.
    """

    electrons: int = eqx.field(static=True)
    smearing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        check_count("electrons", self.electrons)
        if not 0 <= self.smearing < float("inf"):
            raise ValueError(f"`smearing` must not be negative, got {self.smearing!r}.")
        if self.electrons > 1 and self.electrons % 2 and not self.smearing:
            raise ValueError(
                f"`electrons` = {self.electrons}: orbitals are shared by two spins, so "
                "an odd number leaves one half full. Take an even number or one, or a "
                "`smearing` above zero."
            )

    def full(self, block: int, num_blocks: int) -> int:
        """How many orbitals of a block are filled without smearing.

        In one dimension the bound states of an even potential are even and odd in turn.
        """
        return -(-(-(-self.electrons // 2) - block) // num_blocks)

    def check_room(self, blocks: tuple[int, ...]) -> None:
        """Raises if the electrons do not fit into blocks of some sizes."""
        orbitals, room = -(-self.electrons // 2), sum(blocks)
        if orbitals > room:
            raise ValueError(
                f"`electrons` = {self.electrons} need {orbitals} orbitals, but the "
                f"grid holds {room}. Take more points."
            )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def fill(hamiltonians: Blocks, filling: Filling) -> tuple[Blocks, Scalar]:
    """The density matrices of the filled orbitals.

    Their derivatives are sums over pairs of orbitals of different occupation, so equal
    energies among the filled ones, or among the empty ones, do no harm. They can be
    taken forwards and backwards.

    **Arguments:**

    - `hamiltonians`: in orthonormal functions, by symmetry.
    - `filling`: how many electrons.

    **Returns:** for each block a matrix whose trace is its number of electrons, and
    minus the temperature times the entropy, in hartree.
    """
    return _fill(hamiltonians, filling)[0]


@fill.defjvp
def _fill_jvp(filling, primals, tangents):
    (hamiltonians,), (changes,) = primals, tangents
    out, levels, fillings, orbitals = _fill(hamiltonians, filling)
    if filling.smearing:
        return out, _smeared_jvp(filling, changes, levels, fillings, orbitals)
    dots = []
    for e, f, u, dh in zip(levels, fillings, orbitals, changes, strict=True):
        m = f.shape[0]
        if m == 0:
            dots.append(jnp.zeros_like(dh))
            continue
        gap = e[:m, None] - e[None, m:]
        response = f[:, None] * gap / (gap**2 + _NO_GAP**2)
        mixed = response * (u[:, :m].T @ dh @ u[:, m:])
        half = u[:, :m] @ mixed @ u[:, m:].T
        dots.append(half + half.T)
    return out, (tuple(dots), jnp.zeros_like(out[1]))


def _fill(hamiltonians: Blocks, filling: Filling):
    """What `fill` returns; and for each block the energies, occupations, orbitals."""
    filling.check_room(tuple(h.shape[0] for h in hamiltonians))
    pairs = []
    for block, h in enumerate(hamiltonians):
        if filling.smearing or filling.full(block, len(hamiltonians)):
            pairs.append(jnp.linalg.eigh(h, symmetrize_input=False))
        else:  # what is not filled need not be known
            pairs.append((jnp.zeros_like(h[0]), h))
    levels, orbitals = (tuple(x) for x in zip(*pairs, strict=True))
    if filling.smearing:
        fillings, heat = _fermi_dirac(levels, filling)
    else:
        fillings, heat = _lowest(levels, filling), jnp.zeros_like(levels[0][0])
    matrices = []
    for f, u in zip(fillings, orbitals, strict=True):
        filled = u[:, : f.shape[0]]
        matrices.append((filled * f[None]) @ filled.T)
    return (tuple(matrices), heat), levels, fillings, orbitals


def _lowest(levels, filling: Filling) -> tuple[Array, ...]:
    many = float(min(filling.electrons, 2))
    count = range(len(levels))
    return tuple(
        jnp.full(filling.full(b, len(levels)), many, levels[b].dtype) for b in count
    )


def _fermi_dirac(levels, filling: Filling) -> tuple[tuple[Array, ...], Scalar]:
    """Occupations at the chemical potential that suits the electrons, and the heat."""
    e = jnp.concatenate(levels)
    ends = jnp.min(e) - 50 * filling.smearing, jnp.max(e) + 50 * filling.smearing

    def halve(_, ends):
        low, high = ends
        mid = 0.5 * (low + high)
        many = jnp.sum(2 * jax.nn.sigmoid((mid - e) / filling.smearing))
        enough = many >= filling.electrons
        return jnp.where(enough, low, mid), jnp.where(enough, mid, high)

    # Halved so often, the interval is as small as the rounding of its ends.
    potential = jax.lax.fori_loop(0, 80, halve, ends)[1]
    x = (potential - e) / filling.smearing
    f = jax.nn.sigmoid(x)
    disorder = jnp.sum(f * jax.nn.softplus(-x) + (1 - f) * jax.nn.softplus(x))
    cuts = np.cumsum([len(x) for x in levels])[:-1].tolist()
    return tuple(jnp.split(2 * f, cuts)), -2 * filling.smearing * disorder


def _smeared_jvp(filling, changes, levels, fillings, orbitals):
    """The same sum over all pairs, at a fixed number of electrons."""
    rotated = [u.T @ dh @ u for u, dh in zip(orbitals, changes, strict=True)]
    slopes = [-f * (1 - f / 2) / filling.smearing for f in fillings]
    of = lambda f: jnp.sum(jnp.concatenate(f))
    shifts = [s * jnp.diagonal(w) for s, w in zip(slopes, rotated, strict=True)]
    tiny = jnp.finfo(levels[0].dtype).tiny
    potential = of(shifts) / jnp.minimum(of(slopes), -tiny)
    dots, heat = [], jnp.zeros_like(potential)
    for e, f, s, u, w in zip(levels, fillings, slopes, orbitals, rotated, strict=True):
        gap = e[:, None] - e[None]
        close = jnp.abs(gap) < _CLOSE * filling.smearing
        ratio = (f[:, None] - f[None]) / jnp.where(close, 1, gap)
        response = jnp.where(close, 0.5 * (s[:, None] + s[None]), ratio)
        mixed = response * w - jnp.diag(s * potential)
        dots.append(u @ mixed @ u.T)
        heat = heat - jnp.sum(e * jnp.diagonal(mixed))
    return tuple(dots), heat
