"""The Kohn-Sham solver against exact diagonalisation, quadrature and differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from opifex.quantum import (
    AbstractFunctional,
    DIIS,
    Exponential,
    fill,
    Filling,
    Grid,
    KohnSham,
    LDA,
    Linear,
    Molecule,
    NeuralFunctional,
    SCF,
    SoftCoulomb,
    solve,
    solve_exactly,
)
from opifex.quantum.functionals import hartree
from opifex.zoo.dissociation import h2_dissociation


H2 = Molecule([-0.7, 0.7])
SMALL = Grid(31, 0.6, 4)
SYSTEM = KohnSham(SMALL, symmetric=True)
TIGHT = {"energy_tolerance": 1e-12, "density_tolerance": 1e-10, "max_iterations": 90}
run = eqx.filter_jit(solve)
attraction = eqx.filter_jit(Molecule.attraction)


def neural(filters=3, **settings):
    return NeuralFunctional(filters=filters, key=jr.key(3), **settings)


class Hybrid(AbstractFunctional):
    """Some of the Hartree energy, and something local; soon compiled."""

    share: jax.Array
    strength: jax.Array

    def energy_density(self, density, grid):
        alone = hartree(density, grid, Exponential())
        return -self.share * alone - self.strength * density / (1 + density)


# The exchange of two electrons is minus half their Hartree energy, and that is half the
# integral of density and potential.
EXCHANGE = Hybrid(jnp.array(0.25), jnp.array(0.0))


def hydrogen(grid, place=0.0, interaction=None):
    interaction = Exponential() if interaction is None else interaction
    nuclei = attraction(Molecule([place]), grid, interaction)
    return np.linalg.eigvalsh(grid.kinetic() + np.diag(nuclei))[0]


@pytest.mark.parametrize("order", [4, 8])
@pytest.mark.parametrize("place", [0.0, 0.07])
def test_energies_converge_with_order_four(order, place):
    """Kinks and all, wherever the nucleus is. The extrapolation of the energies that
    plain sampling gives (evidence of second order) is -0.669775."""
    spacings = (0.4, 0.2, 0.1)
    energies = [
        hydrogen(Grid(2 * round(14 / h) + 1, h, order), place) for h in spacings
    ]
    truth = hydrogen(Grid(561, 0.05, 8))
    assert abs(truth + 0.669775) < 3e-6
    errors = np.abs(np.array(energies) - truth)
    slopes = np.log2(errors[:-1] / errors[1:])
    assert slopes[-1] > 3.95
    assert errors[1] < 2e-5


def test_without_kinks_the_order_is_that_of_the_differences():
    energies = [
        hydrogen(Grid(num, h, 8), 0.0, SoftCoulomb())
        for num, h in ((71, 0.6), (141, 0.3), (281, 0.15))
    ]
    errors = np.abs(np.array(energies[:2]) - energies[2])
    assert np.log2(errors[0] / errors[1]) > 7
    # Published by Wagner et al., Phys. Chem. Chem. Phys. 14, 8581 (2012).
    assert abs(energies[2] + 0.669778) < 1e-5


def test_two_electrons_are_those_of_a_sparse_matrix():
    grid, interaction = Grid(21, 0.8, 4), Exponential()
    found = solve_exactly(H2, grid, interaction)
    one = grid.kinetic() + np.diag(attraction(H2, grid, interaction))
    x, eye = grid.points, np.eye(grid.num)
    between = interaction.sampled(x[:, None] - x[None], grid.spacing)
    whole = np.kron(one, eye) + np.kron(eye, one) + np.diag(between.reshape(-1))
    values, vectors = scipy.sparse.linalg.eigsh(whole, k=1, which="SA")
    energy = values[0] + H2.repulsion(interaction)
    np.testing.assert_allclose(found.energy, energy, atol=1e-12)
    density = 2 * np.sum(vectors.reshape(21, 21) ** 2, axis=1) / grid.spacing
    np.testing.assert_allclose(found.density, density, atol=1e-6)
    with pytest.raises(ValueError, match="`molecule` has 1 electrons"):
        solve_exactly(Molecule([0.0]), grid, interaction)
    with pytest.raises(RuntimeError, match="did not converge"):
        solve_exactly(H2, grid, interaction, tolerance=1e-30)


def test_one_electron_is_exact_whatever_the_weights():
    grid, place = Grid(71, 0.4), 0.3
    found = run(KohnSham(grid), neural(), Molecule([place]), SCF(max_iterations=90))
    np.testing.assert_allclose(found.energy, hydrogen(grid, place), atol=1e-8)
    assert abs(grid.spacing * found.density.sum() - 1) < 1e-12


def test_without_exchange_and_correlation_hartree_is_bound_from_below():
    """Exact energies are below those of a single Slater determinant."""
    exact = solve_exactly(H2, SMALL, Exponential()).energy
    fock = run(SYSTEM, EXCHANGE, H2, SCF(mixing=Linear(), max_iterations=90)).energy
    assert exact < fock < exact + 0.05


def test_lda_exchange_is_that_of_the_uniform_gas():
    a, k = Exponential().amplitude, Exponential().decay
    energy = jax.jit(lambda n: LDA().energy_density(n, Grid(9, 0.1)))
    for density in (1e-3, 0.3, 2.0):
        # The hole of either spin, whose Fermi momentum is pi / 2 times the density.
        by = lambda u, n=density: np.exp(-k * u) * np.sinc(n * u / 2) ** 2
        exchange = -a * density / 2 * scipy.integrate.quad(by, 0, 80, limit=500)[0]
        whole = energy(np.full(9, density))[0]
        y = np.pi * density / k
        below = 2 - 1.00077 * y**0.5 + 6.26099 * y - 11.9041 * y**1.5
        below += 9.62614 * y**2 - 1.48334 * y**2.5 + np.pi * k**2 / a * y**3
        np.testing.assert_allclose(whole, exchange - a * y / np.pi / below, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda n: energy(n).sum()))(np.zeros(9))
    assert np.isfinite(slope).all()


SETTINGS = {
    "linear": SCF(mixing=Linear(), **TIGHT),
    "smeared": SCF(smearing=1e-4, **TIGHT),
    "diis": SCF(**TIGHT),
    "shift": SCF(level_shift=0.3, **TIGHT),
    "implicit": SCF(differentiate="implicit", **TIGHT),
}


def test_every_way_to_iterate_ends_in_one_place():
    functional = LDA()
    found = {k: run(SYSTEM, functional, H2, scf) for k, scf in SETTINGS.items()}
    wanted = run(KohnSham(SMALL), LDA(), H2, SETTINGS["diis"])
    for name, solution in found.items():
        assert bool(solution.converged), name
        np.testing.assert_allclose(
            solution.energy, found["linear"].energy, atol=1e-9, err_msg=name
        )
        assert abs(solution.energies[-1] - solution.energy) < 1e-9
        assert solution.changes[solution.iterations - 1] < 1e-10
    assert found["diis"].iterations < found["linear"].iterations
    assert found["shift"].iterations > found["diis"].iterations
    np.testing.assert_allclose(wanted.energy, found["diis"].energy, atol=1e-9)


@pytest.mark.parametrize("bound, wanted", [(5.0, 0.105), (float("inf"), -0.5)])
def test_diis_goes_no_further_than_its_bound(bound, wanted):
    """Changes of 1.0 and 1.1, at 0 and 0.05, cancel with coefficients 11 and -10."""
    mixing, each = DIIS(0.05, bound=bound), np.ones(9, np.float32)
    memory = mixing.init(jnp.asarray(0 * each))
    for i, (place, change) in enumerate(((0.0, 1.0), (0.05, 1.1))):
        density = jnp.asarray(place * each)
        output = density + jnp.asarray(change * each)
        mixed, memory = mixing(memory, density, output, jnp.asarray(i, jnp.int32))
    np.testing.assert_allclose(mixed, wanted * each, rtol=1e-2)


def test_gradients_are_those_of_differences():
    """By the functional and by the places of nuclei, iterations unrolled or not."""

    def energy(free, way, mixing):
        functional, place = free
        scf = SCF(mixing=mixing, differentiate=way, **TIGHT)
        molecule = Molecule(jnp.stack([-place, place]), electrons=2)
        found = solve(SYSTEM, functional, molecule, scf)
        # A density besides, which has no variational principle to hide errors.
        return found.energy + found.density[18]

    given = Hybrid(jnp.array(0.2), jnp.array(0.1))
    arrays, static = eqx.partition((given, jnp.array(0.7)), eqx.is_array)
    vector, unravel = ravel_pytree(arrays)
    direction = jr.normal(jr.key(0), vector.shape)
    grad = eqx.filter_jit(eqx.filter_value_and_grad(energy))

    def at(t, way="implicit", mixing=None):
        moved = eqx.combine(unravel(vector + t * direction), static)
        value, slopes = grad(moved, way, DIIS() if mixing is None else mixing)
        return value, ravel_pytree(slopes)[0]

    along = lambda t: at(t)[0]
    unrolled, implicit = at(0.0, "unroll", Linear())[1], at(0.0)[1]
    size = np.linalg.norm(unrolled)
    assert np.linalg.norm(implicit - unrolled) < 1e-6 * size
    h = 1e-3
    slope = (8 * (along(h) - along(-h)) - along(2 * h) + along(-2 * h)) / (12 * h)
    np.testing.assert_allclose(unrolled @ direction, slope, rtol=1e-6)


@pytest.mark.parametrize("smearing", [0.0, 0.1])
def test_density_matrices_have_derivatives_at_degeneracies(smearing):
    """Four electrons in a matrix with equal energies among the filled and among the
    empty; forwards, backwards and by differences."""
    turn = np.linalg.qr(np.array(jr.normal(jr.key(1), (5, 5))))[0]
    h = turn @ np.diag([-1.0, -1.0, 0.3, 0.3, 0.3]) @ turn.T
    dh, weights = np.array(jr.normal(jr.key(2), (2, 5, 5)))
    dh, weights = dh + dh.T, weights + weights.T
    filling = Filling(4, smearing)

    def measure(h):
        (matrix,), heat = fill((h,), filling)
        return jnp.sum(weights * matrix) + heat

    step = 1e-4

    @jax.jit
    def found(h):
        forwards = jax.jvp(measure, (h,), (dh,))[1]
        backwards = jnp.sum(jax.grad(measure)(h) * dh)
        slope = (measure(h + step * dh) - measure(h - step * dh)) / (2 * step)
        return forwards, backwards, slope, jnp.trace(fill((h,), filling)[0][0])

    forwards, backwards, slope, electrons = found(h)
    np.testing.assert_allclose(forwards, slope, rtol=1e-5)
    np.testing.assert_allclose(backwards, forwards, rtol=1e-12)
    np.testing.assert_allclose(electrons, 4, rtol=1e-12)
    # Nothing is filled without a gap, and yet all is finite.
    assert np.isfinite(found(np.zeros((5, 5)))[1])


def test_several_nuclei_and_electrons_under_vmap():
    """Lithium hydride-like chains, at once and one by one, symmetric or not."""
    places = jnp.array([[-3.0, -1.0, 1.0, 3.0], [-4.0, -1.5, 1.5, 4.0]])
    one = lambda x: solve(SYSTEM, LDA(), Molecule(x, electrons=4))
    found = eqx.filter_jit(jax.vmap(one))(places)
    assert found.converged.all()
    np.testing.assert_allclose(SMALL.spacing * found.density.sum(1), 4, rtol=1e-12)
    alone = run(KohnSham(SMALL), LDA(), Molecule(places[1]))
    np.testing.assert_allclose(alone.energy, found.energy[1], atol=1e-7)


def test_default_functional_has_the_published_size():
    make = lambda key: h2_dissociation().model(key, jnp.float32)
    model = eqx.filter_eval_shape(make, jr.key(0))
    arrays = [x for x in jax.tree.leaves(model) if hasattr(x, "dtype")]
    assert {x.dtype for x in arrays} == {jnp.dtype("float32")}
    assert sum(x.size for x in arrays) == 1568


BAD = {
    "coincident": (lambda: Molecule([0.5, 0.5]), "coincident nuclei"),
    "charge": (lambda: Molecule([0.5], [-1.0]), "`charges` must be positive"),
    "place": (lambda: solve(SYSTEM, LDA(), Molecule([-99.0, 99.0])), "outside"),
    "mirror": (lambda: solve(SYSTEM, LDA(), Molecule([0.0, 1.0])), "mirror images"),
    "odd": (lambda: solve(SYSTEM, LDA(), Molecule([0.0], [3.0])), "= 3: orbitals"),
    "many": (
        lambda: solve(SYSTEM, LDA(), Molecule([0.0], electrons=64)),
        "need 32 orbitals, but the grid holds 31",
    ),
    "several": (lambda: solve(SYSTEM, LDA(), Molecule([[0.0]])), "jax.vmap"),
    "even grid": (lambda: Grid(10), "`num` must be odd"),
    "order": (lambda: Grid(11, 0.1, 5), "`order` must be"),
    "way": (lambda: SCF(differentiate="unrol"), "Did you mean 'unroll'"),
    "policy": (lambda: SCF(on_nonconverged="skp"), "Did you mean 'skip'"),
    "alpha": (lambda: Linear(1.5), "`alpha` must be above 0"),
    "depth": (lambda: DIIS(depth=1), "`depth`"),
    "bound": (lambda: DIIS(bound=0.9), "`bound` must be at least 1"),
    "softening": (lambda: SoftCoulomb(0.0), "`softening` must be positive"),
    "filters": (lambda: neural(filters=1), "`filters`"),
    "widths": (lambda: neural(widths=(1.0, 0.5)), "`widths`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_converge_says_so():
    scf = SCF(max_iterations=2, mixing=Linear())
    with pytest.raises(Exception, match="did not converge within `max_iterations` = 2"):
        jax.block_until_ready(run(SYSTEM, LDA(), H2, scf).energy)
