"""The derivatives of networks against nested ones, as a user would write them."""

import functools
import logging

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

from opifex.derivatives import laplacian, Taylor


def eager(function, *args):
    """Operation by operation: nested derivatives take far longer to compile as one."""
    jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    with jax.disable_jit():
        leaves = jaxpr_as_fun(jaxpr)(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)


def relative_error(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


def relative_distance(a, b):
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def by_nested_grad(apply, wanted):
    def derivatives(params, points):
        def u(*coords):
            return apply(params, jnp.stack(coords))[0]

        @functools.cache
        def by(index):
            return jax.grad(by(index[:-1]), index[-1]) if index else u

        return [jax.vmap(by(index))(*points.T) for index in wanted]

    return derivatives


def by_taylor(apply, wanted):
    def derivatives(params, points):
        model = functools.partial(apply, params)
        value, found = Taylor()(model, points, [w for w in wanted if w])
        return [(found[w] if w else value)[0] for w in wanted]

    return derivatives


def with_gradient(derivatives, params, points):
    """The derivatives, and the gradient of their mean squares, each scaled to one."""

    def loss(params):
        found = derivatives(params, points)
        squares = [jnp.mean(x**2) for x in found]
        return sum(s / lax.stop_gradient(s) for s in squares), found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return found, gradient


def assert_as_nested(apply, params, points, wanted, tolerance=5e-15):
    found, gradient = (
        eager(functools.partial(with_gradient, way(apply, wanted)), params, points)
        for way in (by_taylor, by_nested_grad)
    )
    (found, gradient), (truth, true_gradient) = found, gradient
    for index, a, b in zip(wanted, found, truth, strict=True):
        assert relative_error(a, b) <= tolerance, index
    assert relative_distance(gradient, true_gradient) <= tolerance


def weights(key, *sizes):
    """A matrix and a bias for each pair of sizes."""
    pairs = []
    for i, (n, m) in enumerate(sizes):
        w, b = jr.split(jr.fold_in(key, i))
        pairs.append((jr.normal(w, (m, n)) / n**0.5, jr.normal(b, (m,)) / 2))
    return pairs


def dense(pair, x):
    return pair[0] @ x + pair[1]


# Activations

ACTIVATIONS = {
    name: getattr(jax.nn, name)
    for name in (
        "celu gelu log_softmax mish silu soft_sign softmax softplus squareplus"
    ).split()
} | {
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "glu": lambda x: jax.nn.glu(jnp.concatenate([x, x[::-1]])),
    "logaddexp": lambda x: jnp.logaddexp(x, x[::-1] ** 2),
    "log1mexp": lambda x: jax.nn.log1mexp(1 + x**2),
}
CHAIN = [(), (0,), (0, 1), (0, 0, 1), (0, 0, 1, 1)]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    def apply(params, x):
        return dense(params[1], ACTIVATIONS[name](dense(params[0], x)))

    # A key for which nothing cancels: with key 0, nested grad is off by 5e-15 itself.
    key = jr.key(1)
    points = jr.uniform(key, (3, 2), minval=-1.0)
    assert_as_nested(apply, weights(key, (2, 4), (4, 1)), points, CHAIN)


def test_power_at_zero():
    """The derivatives that vanish do so, though powers below zero are infinite."""
    wanted = [(0,), (0, 0), (0, 0, 0)]

    def powers(exponents):
        model = lambda x: x[0] ** exponents
        return Taylor()(model, jnp.zeros((1, 1)), wanted)

    for run in (powers, jax.jit(powers)):  # known exponents, and traced ones
        value, found = run(jnp.array([0.0, 1.0, 2.0, 3.0]))
        all_orders = jnp.stack([value, *(found[w] for w in wanted)])[..., 0]
        assert jnp.array_equal(all_orders, jnp.diag(jnp.array([1.0, 1.0, 2.0, 6.0])))


def test_where_terms_cancel(key):
    """Against a closed form in extended precision, with a complex step: the sigmoid of
    a layer whose values cancel, where nested grad is too far off to compare with."""
    params = weights(key, (2, 4), (4, 1))
    points = jr.uniform(key, (3, 2), minval=-1.0)
    apply = lambda p, x: dense(p[1], jax.nn.sigmoid(dense(p[0], x)))
    way = functools.partial(with_gradient, by_taylor(apply, CHAIN))
    found, gradient = eager(way, params, points)
    leaves = [np.asarray(x).astype(np.clongdouble) for x in jax.tree.leaves(params)]
    polynomials = [np.polynomial.Polynomial([0, 1])]  # in s: d/dz = s (1 - s) d/ds
    for _ in range(4):
        slope = polynomials[-1].deriv()
        polynomials.append(slope * np.polynomial.Polynomial([0, 1, -1]))

    def closed_form(w, b, v, c):
        s = 1 / (1 + np.exp(-(np.asarray(points).astype(w.dtype) @ w.T + b)))
        for index in CHAIN:
            slopes = sum(a * s**k for k, a in enumerate(polynomials[len(index)].coef))
            yield (slopes * np.prod(w[:, index], axis=1)) @ v[0] + (not index) * c[0]

    truth = [x.real for x in closed_form(*leaves)]
    for a, b in zip(found, truth, strict=True):
        assert np.abs(np.asarray(a) - b).max() <= 8e-15 * np.abs(b).max()
    error = norm = np.longdouble(0)
    for leaf, computed in zip(leaves, jax.tree.leaves(gradient), strict=True):
        for at in np.ndindex(leaf.shape):
            step = np.longdouble(1e-40)
            leaf[at] += 1j * step
            pairs = zip(closed_form(*leaves), truth, strict=True)
            true = sum(np.mean(x * x).imag / np.mean(y**2) for x, y in pairs) / step
            leaf[at] = leaf[at].real
            error += (np.asarray(computed)[at] - true) ** 2
            norm += true**2
    assert error**0.5 <= 8e-15 * norm**0.5  # 5e-15 with fused multiply-adds


# Networks. Each has layers 2-4, 2-4, 2-4, 4-4, 4-4, 4-1, and 4 numbers more.


def mlp(p, x):
    for i in (0, 3, 4):
        x = jnp.tanh(dense(p["layers"][i], x))
    return dense(p["layers"][5], x)


def gated(p, x):
    """The modified MLP of Wang, Teng and Perdikaris (SIAM J. Sci. Comput. 2021)."""
    u, v, h = (jnp.tanh(dense(p["layers"][i], x)) for i in range(3))
    for i in (3, 4):
        h = jnp.tanh(dense(p["layers"][i], h))
        h = h * u + (1 - h) * v
    return dense(p["layers"][5], h)


def pirate(p, x):
    """A block of PirateNet, with Wang, Li, Chen and Perdikaris (JMLR 2024)."""
    u, v, embedded = (jnp.tanh(dense(p["layers"][i], x)) for i in range(3))
    f = jnp.tanh(dense(p["layers"][3], embedded))
    h = jnp.tanh(dense(p["layers"][4], f * u + (1 - f) * v))
    alpha = p["more"][0]
    return dense(p["layers"][5], alpha * h + (1 - alpha) * embedded)


def fourier(p, x):
    phases = p["layers"][0][0][:2] @ (3 * x)
    h = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)])
    return dense(p["layers"][5], jnp.tanh(dense(p["layers"][3], h)))


def layer_norm(p, x):
    h = jnp.tanh(dense(p["layers"][0], x))
    norm = eqx.tree_at(lambda n: n.weight, eqx.nn.LayerNorm(4), p["more"])
    return dense(p["layers"][5], jnp.tanh(dense(p["layers"][3], norm(h))))


def factorised(p, x):
    """Random weight factorisation: Wang et al. (arXiv:2210.01274)."""
    h = jnp.tanh(dense(p["layers"][0], x))
    w, b = p["layers"][3]
    h = jnp.tanh(jnp.exp(p["more"])[:, None] * w @ h + b)
    return dense(p["layers"][5], h)


@pytest.mark.parametrize("apply", [mlp, gated, pirate, fourier, layer_norm, factorised])
def test_network(key, apply):
    sizes = [(2, 4)] * 3 + [(4, 4)] * 2 + [(4, 1)]
    params = {"layers": weights(key, *sizes), "more": jnp.array([0.6, 0.8, 1.1, 0.9])}
    points = jr.uniform(key, (3, 2), minval=-1.0)
    # Of the fourth order, whose nested form is the longest, the longest of them all.
    assert_as_nested(apply, params, points, CHAIN if apply is gated else CHAIN[:4])


@pytest.mark.parametrize("block", [1, 3, 10])
def test_blocks(key, block):
    """Ten points, ragged blocks among them: as all at once, and under jit and vmap."""
    params, points = weights(key, (9, 5), (5, 2)), jr.uniform(key, (10, 9))
    wanted = [laplacian(range(9)), (0, 1)]

    def found(block, params, points):
        model = lambda x: dense(params[1], jnp.tanh(dense(params[0], x)))
        value, rest = Taylor(block=block)(model, points, wanted)
        return value, [rest[w] for w in wanted]

    def gradient(block, params, points):
        loss = lambda p: sum(jnp.sum(x**2) for x in found(block, p, points)[1])
        return jax.grad(loss)(params)

    pair = jnp.stack([points, points[::-1]])
    for way in (found, gradient):
        some, whole = (functools.partial(way, b, params) for b in (block, 100))
        both = jax.jit(lambda x, some=some: (some(x[0]), jax.vmap(some)(x)))
        one, two = both(pair)
        truth = whole(points)
        assert relative_distance(one, truth) < 1e-14
        for i in range(2):
            # The values are those of the points, the gradient that of their sum.
            turn = lambda x, i=i, way=way: x[..., ::-1] if i and way is found else x
            member = jax.tree.map(lambda x, i=i: x[i], two)
            assert relative_distance(member, jax.tree.map(turn, truth)) < 1e-14


@pytest.mark.parametrize("seed", range(2))
def test_random_networks_and_indices(seed):
    random = np.random.default_rng(seed)
    dim, depth = random.integers(1, 4), random.integers(1, 3)
    widths = [dim, *random.integers(2, 6, depth), 1]
    activation = [jnp.tanh, jnp.sin, jax.nn.silu][random.integers(3)]
    index = lambda: tuple(sorted(random.integers(0, dim, random.integers(1, 5))))
    wanted = list(dict.fromkeys(tuple(map(int, index())) for _ in range(2)))

    def apply(params, x):
        for pair in params[:-1]:
            x = activation(dense(pair, x))
        return dense(params[-1], x)

    params = weights(jr.key(seed), *zip(widths[:-1], widths[1:], strict=True))
    points = jr.uniform(jr.key(seed), (3, int(dim)), minval=-1.0)
    for w in wanted:  # each by itself, so that each gradient is compared
        assert_as_nested(apply, params, points, [w])


# Layers without a rule


@jax.custom_jvp
def ruled(x):
    return jnp.sin(x)


@ruled.defjvp
def _ruled_jvp(primals, tangents):
    # Not the derivative of the sine, to tell which of the two is taken.
    return ruled(primals[0]), 2 * tangents[0] * ruled(primals[0])


@jax.custom_jvp
def late(x):
    return jnp.where(x < 5, x, x + (x - 5) ** 2)


@late.defjvp
def _late_jvp(primals, tangents):
    (x,), (dot,) = primals, tangents
    return late(x), dot * jnp.where(x < 5, 1.0, 2 * x - 9)


A = jr.normal(jr.key(7), (6, 6)) / 2
ATTENTION = eqx.nn.MultiheadAttention(1, 2, key=jr.key(8))
CONV = eqx.nn.Conv1d(1, 2, 3, key=jr.key(9))
# By name: a function of six numbers, and the primitive that the note must name.
LAYERS = {
    "scan": (lambda h: lax.scan(lambda c, a: (jnp.tanh(A @ c + a), a), h, h)[0], ...),
    "fori": (lambda h: lax.fori_loop(0, 3, lambda i, c: jnp.sin(A @ c), h), "scan"),
    "while": (
        lambda h: lax.while_loop(
            lambda c: c[0] < 2.5, lambda c: (c[0] + 1, jnp.sin(A @ c[1])), (0.0, h)
        )[1],
        ...,
    ),
    "cond": (lambda h: lax.cond(h[0] > 0.0, jnp.sin, lambda h: h**3, h), ...),
    "argsort": (lambda h: (h**2)[jnp.argsort(h)], "sort"),
    "cumprod": (lambda h: jnp.cumprod(h[:3]), ...),
    "attention": (lambda h: ATTENTION(*[h.reshape(3, 2)] * 3).ravel(), "reduce_max"),
    "conv": (lambda h: CONV(h[None]).ravel(), "conv_general_dilated"),
    "fft": (lambda h: jnp.abs(jnp.fft.rfft(h + 1)), None),
    "spectrum": (lambda h: jnp.real(jnp.fft.fft(h) * jnp.fft.fft(h[::-1])), None),
    "scatter": (lambda h: h.at[2].set(h[0] ** 2), ...),
    "power": (lambda h: (h**2 + 1.0) ** h, None),
    "two_jets": (lambda h: jnp.einsum("i,j,ij->j", h, h, A), None),
    "whole": (lambda h: (10 * h).astype(int).astype(float) * h, None),
    "remat": (jax.checkpoint(lambda h: jnp.sin(A @ h)), None),
    "custom_jvp": (ruled, None),
    "custom_jvp_of_two": (jnp.logaddexp, None),
    "custom_jvp_far_out": (lambda h: late(10 * h), None),
    "constant": (lambda h: jnp.ones(3), None),
}
ODD = [(0,), (0, 1), (0, 0, 1), laplacian([0, 1])]


# What is compiled as one. Only one of a group may come to the same primitive.
TOGETHER = [
    [name for name, (_, primitive) in LAYERS.items() if primitive is None],
    ["scan", "while", "cond", "argsort", "cumprod"],
    ["fori", "attention", "conv", "scatter"],
]


@pytest.mark.filterwarnings("ignore:A derivative of second or higher order")
@pytest.mark.parametrize("names", TOGETHER, ids=["ruled", "flow", "others"])
def test_layers_without_rule(names, caplog):
    inner = jr.normal(jr.key(1), (6, 2))
    points = jr.uniform(jr.key(5), (3, 2), minval=-1.0)
    hidden = lambda s, x: jnp.tanh(s * inner @ x)

    def call(name, h):
        layer = LAYERS[name][0]
        return layer(h, h[::-1]) if name == "custom_jvp_of_two" else layer(h)

    def model(s, x):
        h = hidden(s, x)
        return jnp.concatenate([call(name, h) for name in names])

    def ours(s):
        value, found = Taylor()(functools.partial(model, s), points, ODD)
        return [value, *(found[w] for w in ODD)]

    def theirs(s):
        def by(f, i):
            return lambda x: jax.jvp(f, (x,), (jnp.eye(2)[i],))[1]

        u = functools.partial(model, s)
        u_0, u_01, u_11 = by(u, 0), by(by(u, 0), 1), by(by(u, 1), 1)
        lap = lambda x: by(u_0, 0)(x) + u_11(x)
        wanted = [u, u_0, u_01, by(u_01, 0), lap]
        return [jax.vmap(f, out_axes=-1)(points) for f in wanted]

    # Compiled in a hurry: it runs once.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(s):
        return [jax.jvp(way, (s,), (jnp.ones(()),)) for way in (ours, theirs)]

    with caplog.at_level(logging.DEBUG, "opifex"):
        found, truth = both(jnp.ones(()))
    sizes = [
        jax.eval_shape(functools.partial(call, name), jnp.zeros(6)).size
        for name in names
    ]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        parts = (np.split(x, np.cumsum(sizes)[:-1]) for x in (a, b))
        for name, one, other in zip(names, *parts, strict=True):
            bound = 1e-13 * np.abs(other).max()
            np.testing.assert_allclose(one, other, 1e-12, bound, err_msg=name)
    noted = [m for m in caplog.messages if m.startswith("No rule for")]
    expected = [(n, LAYERS[n][1]) for n in names if LAYERS[n][1] is not None]
    for name, primitive in expected:
        primitive = name if primitive is ... else primitive
        assert any(f"for {primitive}:" in m for m in noted)
    assert expected or not noted


def test_every_layer_is_in_a_group():
    assert sorted(sum(TOGETHER, [])) == sorted(LAYERS)
