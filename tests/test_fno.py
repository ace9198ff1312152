import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from opifex.neural import FNO, fourier, SpectralConv


CASES = [((9,), (5,)), ((16,), (3,)), ((8, 9), (4, 5)), ((7, 10), (1, 3))]
CASES += [((5, 6, 8), (3, 2, 4))]


def wave_numbers(modes):
    """Every frequency as it lies in the arrays, `(*frequencies, dim)`."""
    axes = [np.arange(1 - m, m) for m in modes[:-1]] + [np.arange(modes[-1])]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def points(grid):
    axes = [np.arange(n) / n for n in grid]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def series(z, grid):
    """The sum of the series by definition: Re sum_k c_k z_k exp(2 pi i k x)."""
    modes = (*((n + 1) // 2 for n in z.shape[1:-2]), z.shape[-2])
    k = wave_numbers(modes)
    phase = np.exp(2j * np.pi * np.tensordot(points(grid), k, ([-1], [-1])))
    twice = np.where(k[..., -1] > 0, 2, 1)
    c = twice[..., None] * (np.asarray(z[0]) + 1j * np.asarray(z[1]))
    return np.tensordot(phase, c, k.ndim - 1).real


@pytest.mark.parametrize("grid, modes", CASES)
def test_both_ways_to_the_modes_and_back_are_those_of_the_definition(
    grid, modes, key, monkeypatch
):
    x = jr.normal(key, (*grid, 2))
    k = wave_numbers(modes)
    phase = np.exp(-2j * np.pi * np.tensordot(k, points(grid), ([-1], [-1])))
    expected = np.tensordot(phase, np.asarray(x), len(grid)) / np.prod(grid)
    z = jr.normal(jr.key(1), (2, *k.shape[:-1], 2))
    for most in (0, 100):
        monkeypatch.setattr(fourier, "MATMUL_MODES", most)
        assert fourier.by_matmul(modes) == bool(most)
        found = fourier.analyse(x, modes)
        np.testing.assert_allclose(jax.lax.complex(*found), expected, atol=1e-14)
        np.testing.assert_allclose(
            fourier.synthesise(z, grid), series(z, grid), atol=1e-13
        )
        # Low modes survive the way there and back.
        low = fourier.synthesise(found, grid)
        np.testing.assert_allclose(fourier.analyse(low, modes), found, atol=1e-14)


@pytest.mark.parametrize("grid, modes", [((16,), (4,)), ((9, 8), (3, 4))])
def test_a_convolution_multiplies_each_mode_by_its_matrix(
    grid, modes, key, monkeypatch
):
    conv = SpectralConv(3, 2, modes, key=key, dtype=float)
    frequencies = wave_numbers(modes).shape[:-1]
    assert conv.weight.shape == (2, *frequencies, 3, 2) and conv.modes == modes
    x = jr.normal(jr.key(1), (4, *grid, 3))  # four functions
    real, imag = conv.weight
    z = jax.vmap(lambda x: fourier.analyse(x, modes))(x)
    z = np.asarray(jax.lax.complex(z[:, 0], z[:, 1]))
    matrices = np.asarray(jax.lax.complex(real, imag))
    y = np.einsum("b...i,...io->b...o", z, matrices)
    expected = [series(np.stack([f.real, f.imag]), grid) for f in y]
    gradients = []
    for most in (0, 100):
        monkeypatch.setattr(fourier, "MATMUL_MODES", most)
        loss = lambda conv, x: jnp.sum(jax.vmap(conv)(x) ** 3)
        np.testing.assert_allclose(jax.vmap(conv)(x), expected, atol=1e-12)
        gradients.append(jax.jit(jax.grad(loss, (0, 1)))(conv, x))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11, rtol=1e-9), *gradients
    )


def test_refined_functions_are_the_same_series(key):
    x = jr.normal(key, (8, 5, 2))
    fine = fourier.refine(x, (16, 15))
    np.testing.assert_allclose(fine[::2, ::3], x, atol=1e-14)  # it interpolates
    np.testing.assert_allclose(fourier.refine(fine, (8, 5)), x, atol=1e-14)
    wave = lambda n: jnp.asarray(np.cos(2 * np.pi * 3 * np.arange(n) / n))[:, None]
    np.testing.assert_allclose(fourier.refine(wave(8), (11,)), wave(11), atol=1e-14)
    # What the coarse grid cannot tell apart is dropped, not aliased.
    np.testing.assert_allclose(fourier.refine(wave(8), (5,)), 0, atol=1e-14)
    # The cosine of Nyquist stays itself, its sine is zero at the points.
    nyquist = jnp.asarray((-1.0) ** np.arange(8))[:, None]
    expected = np.cos(2 * np.pi * 4 * np.arange(24) / 24)[:, None]
    np.testing.assert_allclose(fourier.refine(nyquist, (24,)), expected, atol=1e-14)


def network(dim, *, modes=4, num_layers=2, **kwargs):
    options = {"modes": modes, "num_layers": num_layers, "key": jr.key(7)} | kwargs
    return FNO(dim, 2, 1, width=6, **options)


def smooth(grid, periodic=True):
    """Two channels without modes above the third."""
    axes = [np.arange(n) / (n if periodic else n - 1) for n in grid]
    x = sum((i + 1) * a for i, a in enumerate(np.meshgrid(*axes, indexing="ij")))
    u = np.cos(2 * np.pi * x) + 0.5 * np.sin(2 * np.pi * (x + 0.2))
    return jnp.asarray(np.stack([u, u**2 - u], -1))


@pytest.mark.parametrize(
    "grid, fine", [((16,), (32,)), ((13, 14), (26, 28)), ((7, 8, 9), (14, 16, 18))]
)
def test_the_output_of_linear_layers_does_not_depend_on_the_grid(grid, fine):
    model = network(len(grid), activation=lambda x: x, coordinates=False)
    every = tuple(slice(None, None, 2) for _ in grid)
    z = jr.normal(jr.key(1), (2, *wave_numbers((4,) * len(grid)).shape[:-1], 2))
    apply = eqx.filter_jit(lambda grid: model(fourier.synthesise(z, grid)))
    coarse, finer = apply(grid), apply(fine)
    assert jnp.std(coarse) > 0.1
    np.testing.assert_allclose(coarse, finer[every], atol=1e-12)


def test_the_whole_depends_little_on_the_grid_and_less_without_aliasing():
    def defect(model, coarse, stride):
        fine = (coarse - 1) * stride + 1 if model.padding else coarse * stride
        apply, periodic = eqx.filter_jit(model), not model.padding
        u, v = (apply(smooth((n,), periodic)) for n in (coarse, fine))
        return float(jnp.linalg.norm(u - v[::stride]) / jnp.linalg.norm(u))

    # Spectral weights of order one, so that what is aliased comes through.
    strong = lambda model: eqx.tree_at(
        lambda m: [layer.weight for layer in m.spectral],
        model,
        [30 * layer.weight for layer in model.spectral],
    )
    plain, clean = (
        strong(network(1, coordinates=False, dealias=d)) for d in (False, True)
    )
    assert defect(plain, 64, 2) < 1e-4
    aliased, better = defect(plain, 8, 8), defect(clean, 8, 8)
    assert aliased > 1e-3 and better < 0.3 * aliased
    padded = network(1, padding=1 / 7)
    assert defect(padded, 43, 2) < 2e-2
    assert defect(padded, 85, 2) < defect(padded, 43, 2)


def test_coordinates_and_padding_by_hand():
    """Lift to ten times the coordinate; the convolution takes the mean of a period."""

    def mean_of_coordinate(**kwargs):
        model = FNO(1, 1, 1, width=1, modes=1, num_layers=1, key=jr.key(0), **kwargs)
        where = lambda m: (m.lift, m.spectral[0].weight, m.pointwise, m.project)
        zero = lambda layers: jax.tree.map(jnp.zeros_like, layers)
        lift = eqx.tree_at(
            lambda n: n[0].weight, zero(model.lift), jnp.array([[0.0], [10.0]])
        )
        identity = eqx.tree_at(
            lambda n: n[0].weight, zero(model.pointwise), jnp.ones((1, 1))
        )
        weight = jnp.zeros((2, 1, 1, 1)).at[0].set(1.0)
        parts = lift, weight, zero(model.pointwise), identity
        return eqx.filter_jit(eqx.tree_at(where, model, parts))(jnp.ones((5, 1)))

    np.testing.assert_allclose(mean_of_coordinate(project_sizes=()), 4, rtol=1e-12)
    # Both ends: 0, 1/4, ..., 1, then one point of zeros in a period of 6 quarters.
    padded = mean_of_coordinate(project_sizes=(), padding=0.5)
    np.testing.assert_allclose(padded, 25 / 6, rtol=1e-12)


def test_it_is_a_pytree_that_trains_in_its_precision():
    model = network(2, lift_sizes=(5,), dtype=jnp.float32)
    assert {a.dtype for a in jax.tree.leaves(model)} == {np.dtype("float32")}
    u = smooth((8, 9)).astype(jnp.float32)
    batch = jnp.stack([u, 2 * u])
    loss = lambda m: jnp.mean(jax.vmap(m)(batch) ** 2)
    grads = eqx.filter_jit(eqx.filter_grad(loss))(model)
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.float32 and bool(jnp.any(leaf != 0))
    both = eqx.filter_jit(lambda m, b: jax.vmap(m)(b))(model, batch)
    one = eqx.filter_jit(model)(u)
    np.testing.assert_allclose(both[0], one, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: network(4), "`dim` must be 1, 2 or 3, got 4"),
        (lambda: network(1, modes=0), "`modes` must be a whole number of at least 1"),
        (lambda: network(2, modes=(4, 4, 4)), "one for each of 2 axes"),
        (lambda: network(1, padding=-0.1), "`padding` must be a fraction"),
        (lambda: network(1, lift_sizes=(0,)), "`lift_sizes` must be a whole number"),
        (lambda: network(1, num_layers=0), "`num_layers`"),
        (lambda: network(1)(jnp.zeros((6, 2))), r"grid of \(6,\) .* `modes` of \(4,\)"),
        (lambda: network(1)(jnp.zeros((8, 1))), r"2 channels.*got shape \(8, 1\)"),
        (lambda: network(1)(jnp.zeros((3, 8, 2))), "jax.vmap"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
