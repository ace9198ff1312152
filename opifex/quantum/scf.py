import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._custom_types import Count, Flag, Scalar
from .._misc import check_count, unknown_name
from .functionals import AbstractFunctional, Field
from .interaction import check_positive
from .kohn_sham import KohnSham
from .mixing import AbstractMixing, DIIS
from .molecule import Molecule
from .orbitals import Blocks, fill, Filling


DIFFERENTIATE = ("unroll", "implicit")
ON_NONCONVERGED = ("error", "skip", "penalize")


class SCF(eqx.Module):
    """How self-consistency is sought.

    **Arguments:**

    - `max_iterations`: at the most.
    - `energy_tolerance`: in hartree: the change of the energy between two iterations.
    - `density_tolerance`: in electrons: the integral of the absolute change of the
        density in one. Both must be met.
    - `mixing`: how the next density is made.
    - `level_shift`: in hartree; raises the empty orbitals in the course of the
        iterations, which slows them down and keeps them from swinging to and fro. The
        result does not depend on it.
    - `smearing`: temperature in hartree, see [`Filling`][]. The energy is then the free
        energy.
    - `differentiate`: `"unroll"` differentiates the iterations, which costs memory for
        each; `"implicit"` differentiates the equation that they solve, at its solution.
    - `on_nonconverged`: `"error"` raises; `"skip"` and `"penalize"` return what there
        is, and tell a loss to leave it out, or to add the square of the change.
    """

    max_iterations: int = eqx.field(static=True, default=50)
    energy_tolerance: float = eqx.field(static=True, default=1e-8)
    density_tolerance: float = eqx.field(static=True, default=1e-6)
    mixing: AbstractMixing = DIIS()
    level_shift: float = eqx.field(static=True, default=0.0)
    smearing: float = eqx.field(static=True, default=0.0)
    differentiate: str = eqx.field(static=True, default="unroll")
    on_nonconverged: str = eqx.field(static=True, default="error")

    def __check_init__(self):
        check_count("max_iterations", self.max_iterations)
        check_positive("energy_tolerance", self.energy_tolerance)
        check_positive("density_tolerance", self.density_tolerance)
        for name in ("level_shift", "smearing"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"`{name}` must not be negative, got {getattr(self, name)!r}."
                )
        for name, known in (
            ("differentiate", DIFFERENTIATE),
            ("on_nonconverged", ON_NONCONVERGED),
        ):
            if getattr(self, name) not in known:
                raise ValueError(unknown_name(name, str(getattr(self, name)), known))


class Solution(eqx.Module):
    """Where the iterations ended.

    **Attributes:**

    - `energy`: in hartree, with that of the nuclei.
    - `density`: of the orbitals, electrons a bohr.
    - `converged`, `iterations`: whether both tolerances were met, and after how many.
    - `energies`, `changes`: after each iteration: the energy in hartree, and the
        integral of the absolute change of the density; the last ones are repeated.
    - `residual`: the integral of the square of the last change.
    """

    energy: Scalar
    density: Field
    converged: Flag
    iterations: Count
    energies: Float[Array, " iterations"]
    changes: Float[Array, " iterations"]
    residual: Scalar


class _State(eqx.Module):
    """What the next iteration starts from, and what the last one found."""

    density: Field
    matrices: Blocks
    memory: Any
    found: Solution


def solve(
    system: KohnSham,
    functional: AbstractFunctional,
    molecule: Molecule,
    scf: SCF | None = None,
) -> Solution:
    """The ground state of a molecule. Pure: for `jax.jit`, `jax.vmap` and `jax.grad`.

    **Arguments:**

    - `system`: the grid and the interaction.
    - `functional`: exchange and correlation.
    - `molecule`: the nuclei and the number of electrons.
    - `scf`: how to iterate.

    **Raises:** `ValueError` for too many electrons, nuclei outside the grid, or an
    asymmetric molecule in a symmetric system; an error at run time if the iterations do
    not converge and `on_nonconverged` is `"error"`.
    """
    scf = SCF() if scf is None else scf
    check_place(system, molecule)
    problem = _Problem(system, functional, molecule, scf)
    last = problem.unrolled() if scf.differentiate == "unroll" else problem.implicit()
    if scf.on_nonconverged == "error":
        last = eqx.error_if(
            last,
            ~last.converged,
            "The self-consistent field did not converge within "
            f"`max_iterations` = {scf.max_iterations}. Allow more, mix less (`alpha`), "
            "or use `level_shift` or `smearing`.",
        )
    return last


class _Problem(eqx.Module):
    system: KohnSham
    functional: AbstractFunctional
    molecule: Molecule
    scf: SCF

    @property
    def filling(self) -> Filling:
        return Filling(self.molecule.electrons, self.scf.smearing)

    def unrolled(self) -> Solution:
        step = lambda state, _: (self.once(state), None)
        first = self.first()
        length = self.scf.max_iterations
        return jax.lax.scan(step, first, None, length=length)[0].found

    def implicit(self) -> Solution:
        many = self.scf.max_iterations
        going = lambda s: ~s.found.converged & (s.found.iterations < many)
        # Only the fixed point has derivatives, those of its equation.
        still = _constant(self)
        advance = lambda s: still.iterated(s)
        state = jax.lax.while_loop(going, advance, still.first())
        off = lambda density: density - self.filled(density)[0]
        known = lambda _, density: density
        density = jax.lax.custom_root(off, state.density, known, _linear_solve)
        output, motion, _ = self.filled(density)
        energy = self.system.total(self.functional, self.molecule, output, motion)
        residual = self.integral((output - density) ** 2)
        new = {"energy": energy, "density": output, "residual": residual}
        return dataclasses.replace(_constant(state.found), **new)

    def integral(self, field: Field) -> Scalar:
        return self.system.grid.spacing * jnp.sum(field)

    def filled(self, density: Field) -> tuple[Field, Scalar, Blocks]:
        system = self.system
        potential = system.potential(self.functional, self.molecule, density)
        return system.filled(potential, self.filling)

    def first(self) -> _State:
        """That of the orbitals of a single electron."""
        system, length = self.system, self.scf.max_iterations
        potential = self.molecule.attraction(system.grid, system.interaction)
        density, _, matrices = system.filled(potential, self.filling)
        zero, empty = jnp.zeros((), density.dtype), jnp.zeros(length, density.dtype)
        found = Solution(
            zero,
            density,
            jnp.zeros((), bool),
            jnp.zeros((), jnp.int32),
            empty,
            empty,
            zero,
        )
        return _State(density, matrices, self.scf.mixing.init(density), found)

    def once(self, state: _State) -> _State:
        """An iteration, unless none is needed any more."""
        advance = lambda s: self.iterated(s)  # methods cannot be hashed
        return jax.lax.cond(state.found.converged, lambda s: s, advance, state)

    def iterated(self, state: _State) -> _State:
        before, i = state.found, state.found.iterations
        potential = self.system.potential(self.functional, self.molecule, state.density)
        output, motion, matrices = self.shifted(potential, state.matrices)
        energy = self.system.total(self.functional, self.molecule, output, motion)
        change = output - state.density
        size = self.integral(jnp.abs(change))
        close = jnp.abs(energy - before.energy) <= self.scf.energy_tolerance
        converged = (i > 0) & close & (size <= self.scf.density_tolerance)
        mixed, memory = self.scf.mixing(state.memory, state.density, output, i)
        later = jnp.arange(self.scf.max_iterations, dtype=i.dtype) >= i
        found = Solution(
            energy,
            output,
            converged,
            i + 1,
            jnp.where(later, energy, before.energies),
            jnp.where(later, size, before.changes),
            self.integral(change**2),
        )
        density = jnp.where(converged, state.density, mixed)
        return _State(density, matrices, memory, found)

    def shifted(self, potential: Field, before: Blocks) -> tuple[Field, Scalar, Blocks]:
        """The orbitals in a potential, those that were empty raised."""
        hamiltonians = self.system.hamiltonians(potential)
        if self.scf.level_shift:
            lowered = lambda h, p: h - 0.5 * self.scf.level_shift * p
            hamiltonians = tuple(map(lowered, hamiltonians, before))
        return self.system.measured(*fill(hamiltonians, self.filling))


def _constant(tree):
    arrays, others = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), others)


def _linear_solve(function, vector: Array) -> Array:
    return jax.lax.custom_linear_solve(function, vector, _gmres, _gmres)


def _gmres(function, vector: Array) -> Array:
    """Not a number where it fails, so that training knows."""
    shape = jax.eval_shape(lambda: vector)
    operator = lx.FunctionLinearOperator(function, shape)
    close = float(jnp.finfo(vector.dtype).eps) ** 0.65
    solver = lx.GMRES(rtol=close, atol=close * 1e-3, restart=min(vector.size, 50))
    found = lx.linear_solve(operator, vector, solver, throw=False)
    good = found.result == lx.RESULTS.successful
    return jnp.where(good, found.value, jnp.nan)


def check_place(system: KohnSham, molecule: Molecule) -> None:
    positions, charges = molecule.positions, molecule.charges
    if isinstance(positions, Tracer) or isinstance(charges, Tracer):
        return
    if positions.ndim != 1:
        raise ValueError(
            f"`molecule` holds several: its positions have shape {positions.shape}. "
            "Map `solve` over them with `jax.vmap`."
        )
    reach = system.grid.reach
    if np.abs(positions).max() > reach:
        raise ValueError(
            f"`molecule` has nuclei outside the grid, which reaches to {reach:g} bohr: "
            f"{positions}. Take a longer grid, or move them."
        )
    order = np.argsort(positions)
    x, z = np.asarray(positions)[order], np.asarray(charges)[order]
    if system.symmetric and not (
        np.allclose(x, -x[::-1], atol=1e-6) and np.allclose(z, z[::-1])
    ):
        raise ValueError(
            f"`symmetric` is asked for, but the nuclei at {x} with charges {z} are not "
            "mirror images about zero. Centre them, or leave `symmetric` out."
        )
