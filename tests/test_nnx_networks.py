"""The documented networks: what they compute, and what leaves energies as they are."""

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from opifex.neural.activations import ACTIVATIONS
from opifex.neural.base import StandardMLP
from opifex.neural.quantum import QuantumMLP, SYMMETRIES


def mlp(*args, **kwargs):
    return StandardMLP(*args, rngs=nnx.Rngs(0), **kwargs)


@pytest.mark.parametrize("use_bias", [True, False])
def test_mlp_is_its_formula(key, use_bias):
    model = mlp([3, 8, 5, 2], activation="tanh", use_bias=use_bias)
    x = jr.normal(key, (7, 3))
    expected = np.asarray(x)
    for i, layer in enumerate(model.layers):
        assert (layer.bias is not None) == use_bias
        if use_bias:
            layer.bias[...] = jr.normal(jr.key(i), layer.bias.shape)
        expected = expected @ np.asarray(layer.kernel[...])
        expected = expected + (np.asarray(layer.bias[...]) if use_bias else 0)
        expected = np.tanh(expected) if i < 2 else expected
    out = nnx.jit(lambda model, x: model(x))(model, x)
    assert out.shape == (7, 2) and out.dtype == x.dtype == jnp.float64
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(model)(x[:, None])[:, 0], out, rtol=1e-12)


def test_mlp_precision_and_start(key):
    model = mlp([400, 300], param_dtype=jnp.float32)
    kernel = model.layers[0].kernel[...]
    assert kernel.dtype == jnp.float32
    # LeCun's start: the variance is one over the number of inputs.
    np.testing.assert_allclose(jnp.var(kernel), 1 / 400, rtol=0.02)
    one, other = mlp([2, 3, 1]), mlp([2, 3, 1])
    x = jr.normal(key, (4, 2))
    np.testing.assert_array_equal(one(x), other(x))
    assert not np.allclose(StandardMLP([2, 3, 1], rngs=nnx.Rngs(1))(x), one(x))


FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "sin": np.sin,
    "tanh": np.tanh,
    "swish": lambda x: x / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "identity": lambda x: x,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "celu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))
    ),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: (
        0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formulas(name):
    x = np.linspace(-2, 2, 9)
    model = mlp([1, 1, 1], activation=name)
    for layer in model.layers:
        layer.kernel[...] = jnp.ones((1, 1))
    np.testing.assert_allclose(
        model(jnp.asarray(x)[:, None])[:, 0], FORMULAS[name](x), rtol=1e-9, atol=1e-12
    )
    assert mlp([1, 1], activation=ACTIVATIONS[name]).activation is ACTIVATIONS[name]


def test_dropout_is_for_training_only(key):
    model = mlp([2, 4000, 1], activation="relu", dropout_rate=0.25)
    x = jr.normal(key, (1, 2))
    model.eval()
    still = model(x)
    np.testing.assert_array_equal(model(x), still)
    plain = mlp([2, 4000, 1], activation="relu")
    nnx.update(plain, nnx.state(model, nnx.Param))
    np.testing.assert_array_equal(plain(x), still)
    # In training the hidden units are dropped, and the others made up for it.
    model.train()
    model.layers[1].kernel[...] = jnp.ones((4000, 1)) / 4000
    model.layers[0].kernel[...] = jnp.zeros((2, 4000))
    model.layers[0].bias[...] = jnp.ones(4000)
    one, other = model(x)[0, 0], model(x)[0, 0]
    assert one != other
    # Of 4000 units, the mean strays by sqrt(0.25 * 0.75 / 4000) / 0.75 = 0.009.
    np.testing.assert_allclose([one, other], 1, atol=5 * 0.009)


BAD_MLP = {
    "sizes": (lambda: mlp([3]), "`layer_sizes` must name the input and the output"),
    "size": (lambda: mlp([3, 0]), r"`layer_sizes\[1\]` must be a whole number"),
    "activation": (lambda: mlp([1, 1], "sine"), "`activation`. Did you mean 'sin'"),
    "dropout": (lambda: mlp([1, 1], dropout_rate=1.0), "`dropout_rate` must be at lea"),
    "width": (
        lambda: mlp([3, 1])(jnp.ones((4, 2))),
        r"`x` must have 3 columns, .* got shape \(4, 2\)",
    ),
}


@pytest.mark.parametrize("name", BAD_MLP)
def test_bad_mlps(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    make, message = BAD_MLP[name]
    with pytest.raises(ValueError, match=message):
        make()


def energies(n_atoms=4, symmetry="permutation", **kwargs):
    sizes = [16, 16, 1]
    return QuantumMLP(sizes, n_atoms, symmetry, rngs=nnx.Rngs(0), **kwargs)


def molecules(n_atoms=4, batch=3):
    return 2.0 * jr.normal(jr.key(7), (batch, n_atoms, 3))


ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
ROTATION *= np.linalg.det(ROTATION)
MOVES = {
    "permutation": lambda r: r[:, jnp.array([2, 0, 3, 1])],
    "rotation": lambda r: r @ jnp.asarray(ROTATION),
    "reflection": lambda r: r * jnp.array([[[1.0, 1.0, -1.0]]]),
    "translation": lambda r: r + jnp.array([[[3.0, -1.0, 0.5]]]),
}
KEEPS = {
    "none": [],
    "translation": ["translation"],
    "rotation": ["translation", "rotation", "reflection"],
    "permutation": ["translation", "rotation", "reflection", "permutation"],
}


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_what_leaves_the_energy_as_it_is(symmetry):
    model, r = energies(symmetry=symmetry), molecules()
    energy = model.compute_energy(r)
    assert energy.shape == (3, 1) and energy.dtype == jnp.float64
    assert jnp.std(energy) > 1e-3
    np.testing.assert_array_equal(model(r), energy)
    for name, move in MOVES.items():
        change = jnp.max(jnp.abs(model(move(r)) - energy))
        assert change < 1e-12 if name in KEEPS[symmetry] else change > 1e-3, name


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_forces_are_minus_the_gradient(symmetry):
    model, r = energies(symmetry=symmetry), molecules(batch=2)
    forces = jax.jit(model.compute_forces)(r)
    assert forces.shape == r.shape
    numeric, h = np.zeros(r.shape), 1e-5
    for atom in range(4):
        for axis in range(3):
            ends = [model(r.at[:, atom, axis].add(s * h))[:, 0] for s in (-1, 1)]
            numeric[:, atom, axis] = -(ends[1] - ends[0]) / (2 * h)
    np.testing.assert_allclose(forces, numeric, atol=1e-8)
    if "translation" in KEEPS[symmetry]:
        np.testing.assert_allclose(jnp.sum(forces, axis=1), 0, atol=1e-12)
    if "rotation" in KEEPS[symmetry]:
        torque = jnp.sum(jnp.cross(r, forces), axis=1)
        np.testing.assert_allclose(torque, 0, atol=1e-12)
        turned = model.compute_forces(MOVES["rotation"](r))
        np.testing.assert_allclose(turned, MOVES["rotation"](forces), atol=1e-12)


def test_atoms_of_different_kinds_are_told_apart():
    model, r = energies(n_atoms=3, atomic_numbers=[8, 1, 1]), molecules(n_atoms=3)
    energy = model(r)
    hydrogens, mixed = r[:, jnp.array([0, 2, 1])], r[:, jnp.array([1, 0, 2])]
    np.testing.assert_allclose(model(hydrogens), energy, atol=1e-12)
    assert jnp.max(jnp.abs(model(mixed) - energy)) > 1e-3
    alike = energies(n_atoms=3, atomic_numbers=[2, 2, 2])
    np.testing.assert_array_equal(alike(r), energies(n_atoms=3)(r))


# Two sets of four points whose sorted distances are the same.
SAME_DISTANCES = [
    [[0, 0, 0], [0, 1, 0], [1, 2, 0], [2, 2, 0]],
    [[0, 0, 0], [0, 1, 0], [1, 0, 0], [2, 2, 0]],
]


def test_what_energies_tell_apart():
    model = energies()
    # Two molecules with the same distances, dealt out to the pairs in another way.
    pair = jnp.array(SAME_DISTANCES, float)
    away = jnp.linalg.norm(pair[:, :, None] - pair[:, None], axis=-1)
    one, other = jnp.sort(away.reshape(2, -1), axis=1)
    np.testing.assert_allclose(one, other, rtol=1e-14)
    assert abs(model(pair)[0, 0] - model(pair)[1, 0]) > 1e-3
    # Mirror images of a chiral molecule have one energy.
    chiral = energies(atomic_numbers=[6, 1, 9, 17])
    r = molecules()
    np.testing.assert_allclose(chiral(-r), chiral(r), atol=1e-12)


def test_a_molecule_falls_apart_smoothly():
    model = energies(n_atoms=2)
    at = lambda d: jnp.stack([jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]) * d])[None]
    force = jax.jit(lambda d: jnp.max(jnp.abs(model.compute_forces(at(d)))))
    assert force(1.5) > 1e-3 and force(20.0) < 1e-12
    lone = energies(n_atoms=1)
    r, both = molecules(n_atoms=1), lambda r: (lone(r), lone.compute_forces(r))
    energy, forces = jax.jit(both)(r)
    assert jnp.ptp(energy) == 0 and not np.any(forces)


def test_every_parameter_learns():
    model, r = energies(n_atoms=3, atomic_numbers=[8, 1, 1]), molecules(n_atoms=3)
    grads = nnx.jit(nnx.grad(lambda model: jnp.sum(model(r) ** 2)))(model)
    for grad in jtu.tree_leaves(grads):
        assert jnp.any(grad != 0) and bool(jnp.all(jnp.isfinite(grad)))
    # Also through the forces.
    loss = lambda model: jnp.sum(model.compute_forces(r) ** 2)
    kernel = nnx.jit(nnx.grad(loss))(model)["network"]["layers"][0]["kernel"]
    assert jnp.any(kernel[...] != 0)


BAD_QUANTUM = {
    "features": (lambda: QuantumMLP([8, 2], 3, rngs=nnx.Rngs(0)), "end in 1, the ener"),
    "symmetry": (lambda: energies(symmetry="rotations"), "Did you mean 'rotation'"),
    "atoms": (lambda: energies(n_atoms=0), "`n_atoms` must be a whole number of at le"),
    "one atom": (
        lambda: energies(1, "rotation"),
        "`n_atoms` must .* at least 2, got 1",
    ),
    "numbers": (
        lambda: energies(atomic_numbers=[1, 1]),
        "one number an atom, 4 in all",
    ),
    "radius": (lambda: energies(radius=0.0), "`radius` must be positive"),
    "nuclei": (
        lambda: energies()(jnp.ones((1, 4, 3)).at[0, 0].set(0.0)),
        "`positions` has two nuclei in one place, 1 and 2 of row 0",
    ),
    "positions": (
        lambda: energies()(jnp.ones((4, 3))),
        r"`positions` must have the shape \(batch, 4, 3\), got \(4, 3\).*Write",
    ),
}


@pytest.mark.parametrize("name", BAD_QUANTUM)
def test_bad_quantum_networks(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    make, message = BAD_QUANTUM[name]
    with pytest.raises(ValueError, match=message):
        make()
