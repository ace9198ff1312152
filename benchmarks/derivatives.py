"""What the derivatives of a residual cost, against nested `jax.grad`.

    python benchmarks/derivatives.py [--rounds 15] [--case NAME] [--json FILE]

The equations are written with `residual`; the baseline nests `jax.grad` at a point and
maps it over the points. Both give the loss, the mean squared residual, and its gradient
by the parameters of a tanh MLP, in float32, and must agree before they are measured.
Ratios of CPU times, interleaved, medians over rounds, compilation left out:

- `burgers`, `kdv`, `laplacian2`, `biharmonic` (2-64x4-1), `navier_stokes` (2-D in time,
  3-64x4-3), `laplacian10` (10-128x5-1), all at 4096 points: `.speedup` is the time of
  nested `jax.grad` over ours, `.memory_ratio` our temporary memory over its.
- `burgers.over_hand_written`: the time of Taylor coefficients pushed through the MLP by
  hand, with an activation that saves only what its backward pass needs, over ours.
- `stde100`: a Laplacian over 100 coordinates (100-128x5-1) at 256 points: `STDE(16)`
  against the exact one by forward over reverse mode. What it estimates is checked to
  have no bias.

Both sides are compiled in the order of operations that `fit` asks for on a CPU;
`--default-scheduler` leaves that to XLA.
"""

import argparse
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from _measure import median_ratios
from jax.flatten_util import ravel_pytree

from opifex._fit import _IN_MEMORY_ORDER
from opifex.derivatives import residual, STDE


# A call takes about 10 ms: several make a time that can be read off.
CALLS = 5
FAR = " ".join(f"x{i}" for i in range(100))


@residual("x t")
def burgers(u, x, t, *, nu=0.01):
    return u.t + u * u.x - nu * u.xx


@residual("x t")
def kdv(u, x, t):
    return u.t + u * u.x + 0.01 * u.xxx


@residual("x y")
def laplacian2(u, x, y):
    return u.lap()


@residual(FAR[: FAR.index(" x10")])
def laplacian10(u, *x):
    return u.lap()


@residual("x y")
def biharmonic(u, x, y):
    return u.bilap()


@residual("x y t", fields="u v p")
def navier_stokes(u, v, p, x, y, t, *, nu=0.01):
    along_x = u.t + u * u.x + v * u.y + p.x - nu * u.lap("x y")
    along_y = v.t + u * v.x + v * v.y + p.y - nu * v.lap("x y")
    return along_x, along_y, u.x + v.y


@residual(FAR, derivatives=STDE(16))
def stde100(u, *x):
    return u.lap()


# The same by nested `jax.grad`, at a point.

g = jax.grad


def field(model, i=0):
    return lambda *coords: model(jnp.stack(coords))[i]


def nested_burgers(model, point):
    u = field(model)
    u_x = g(u, 0)
    return g(u, 1)(*point) + u(*point) * u_x(*point) - 0.01 * g(u_x, 0)(*point)


def nested_kdv(model, point):
    u = field(model)
    u_x = g(u, 0)
    u_xxx = g(g(u_x, 0), 0)
    return g(u, 1)(*point) + u(*point) * u_x(*point) + 0.01 * u_xxx(*point)


def nested_laplacian(model, point):
    u = field(model)
    return sum(g(g(u, i), i)(*point) for i in range(len(point)))


def nested_biharmonic(model, point):
    u = field(model)
    by_x, by_y = g(g(u, 0), 0), g(g(u, 1), 1)
    pure = g(g(by_x, 0), 0)(*point) + g(g(by_y, 1), 1)(*point)
    return pure + 2 * g(g(by_x, 1), 1)(*point)


def nested_navier_stokes(model, point):
    u, v, p = (field(model, i) for i in range(3))
    at = lambda f: f(*point)
    lap = lambda f: at(g(g(f, 0), 0)) + at(g(g(f, 1), 1))
    moved = lambda f: at(g(f, 2)) + at(u) * at(g(f, 0)) + at(v) * at(g(f, 1))
    along_x = moved(u) + at(g(p, 0)) - 0.01 * lap(u)
    along_y = moved(v) + at(g(p, 1)) - 0.01 * lap(v)
    return along_x, along_y, at(g(u, 0)) + at(g(v, 1))


def mapped(at_point):
    return lambda model, points: jax.vmap(lambda p: at_point(model, p))(points)


def forward_over_reverse(model, points):
    gradient = g(lambda p: model(p)[0])

    def at(point, unit):
        return jax.jvp(gradient, (point,), (unit,))[1] @ unit

    units = jnp.eye(points.shape[1], dtype=points.dtype)
    over = jax.vmap(lambda p: jnp.sum(jax.vmap(lambda e: at(p, e))(units)))
    return over(points)


# Burgers' equation by hand.


@jax.custom_vjp
def product(w, h):
    return w @ h


def product_bwd(saved, bar):
    w, h = saved
    # Laid out anew, the transposed matrix multiplies faster.
    return bar @ h.T, jax.lax.optimization_barrier(w.T) @ bar


product.defvjp(lambda w, h: (w @ h, (w, h)), product_bwd)


@jax.custom_vjp
def activated(z, z_x, z_t, z_xx):
    """tanh, and what it makes of the derivatives."""
    s = jnp.tanh(z)
    d = 1 - s * s
    return s, d * z_x, d * z_t, d * (z_xx - 2 * s * z_x * z_x)


def activated_bwd(saved, bars):
    s, z_x, z_t, z_xx = saved
    bar, bar_x, bar_t, bar_xx = bars
    d = 1 - s * s
    second, third = -2 * s * d, d * (6 * s * s - 2)
    along = bar_x * z_x + bar_t * z_t + bar_xx * z_xx
    by_z = bar * d + along * second + bar_xx * z_x * z_x * third
    by_x = bar_x * d + 2 * bar_xx * z_x * second
    return by_z, summed(by_x, z_x), summed(bar_t * d, z_t), summed(bar_xx * d, z_xx)


def summed(bar, like):
    """In the first layer the derivatives are equal at all points."""
    return bar if bar.shape == like.shape else jnp.sum(bar, axis=1, keepdims=True)


def activated_fwd(z, z_x, z_t, z_xx):
    out = activated(z, z_x, z_t, z_xx)
    return out, (out[0], z_x, z_t, z_xx)


activated.defvjp(activated_fwd, activated_bwd)


def by_hand(model, points):
    first, *rest = model.layers
    w = first.weight
    h = product(w, points.T) + first.bias[:, None]
    streams = (h, w[:, :1], w[:, 1:], jnp.zeros_like(w[:, :1]))
    for layer in rest:
        h, *others = [product(layer.weight, s) for s in activated(*streams)]
        streams = (h + layer.bias[:, None], *others)
    u, u_x, u_t, u_xx = (s[0] for s in streams)
    return u_t + u * u_x - 0.01 * u_xx


# By name: what is measured, its baseline, and the shape of the network.
SMALL, LARGE = (64, 4), (128, 5)
CASES = {
    "burgers": (burgers, mapped(nested_burgers), 1, SMALL),
    "kdv": (kdv, mapped(nested_kdv), 1, SMALL),
    "laplacian2": (laplacian2, mapped(nested_laplacian), 1, SMALL),
    "navier_stokes": (navier_stokes, mapped(nested_navier_stokes), 3, SMALL),
    "biharmonic": (biharmonic, mapped(nested_biharmonic), 1, SMALL),
    "laplacian10": (laplacian10, mapped(nested_laplacian), 1, LARGE),
    "stde100": (stde100, forward_over_reverse, 1, LARGE),
}


def program(residuals, model, points, options):
    """The compiled loss and gradient, its result, and its temporary memory."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, points):
        out = residuals(eqx.combine(params, static), points)
        return sum(jnp.mean(r**2) for r in (out if isinstance(out, tuple) else (out,)))

    lowered = jax.jit(jax.value_and_grad(loss)).lower(params, points)
    compiled = lowered.compile(compiler_options=options)

    def run():
        for _ in range(CALLS):
            out = jax.block_until_ready(compiled(params, points))
        return out

    memory = compiled.memory_analysis()
    return run, memory.temp_size_in_bytes if memory else float("nan")


def assert_equal(name, one, other):
    """The loss and the whole gradient agree, as far as float32 goes."""
    for a, b in zip(one(), other(), strict=True):
        (a, _), (b, _) = ravel_pytree(a), ravel_pytree(b)
        error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        assert error < 1e-4, f"{name}: results differ by {error}"


def assert_unbiased(estimate, exact, model, points, num_keys=100):
    """The mean over keys agrees with the truth to three standard errors."""
    mean = jax.jit(lambda key: jnp.mean(estimate(model, points, key=key)))
    found = jnp.stack([mean(jr.key(i)) for i in range(num_keys)])
    off = jnp.mean(found) - jnp.mean(exact(model, points))
    deviation = jnp.std(found) / num_keys**0.5
    assert abs(off) < 3 * deviation, f"off by {off}, standard error {deviation}"


def measure(name, rounds, options):
    ours, baseline, fields, (width, depth) = CASES[name]
    dim = len(ours.coords)
    model = eqx.nn.MLP(dim, fields, width, depth, jnp.tanh, key=jr.key(0))
    points = jr.uniform(jr.key(1), (256 if name == "stde100" else 4096, dim))
    residuals = {"ours": ours, "nested": baseline}
    if name == "stde100":
        residuals["ours"] = lambda m, p: ours(m, p, key=jr.key(2))
    if name == "burgers":
        residuals["by_hand"] = by_hand
    made = {k: program(r, model, points, options) for k, r in residuals.items()}
    runs = {k: run for k, (run, _) in made.items()}
    if name == "stde100":
        assert_unbiased(ours, baseline, model, points)
    else:
        for other in runs.keys() - {"ours"}:
            assert_equal(f"{name}, {other}", runs["ours"], runs[other])
    ratios = median_ratios(runs, "ours", rounds)
    figures = {
        f"{name}.speedup": ratios["nested"],
        f"{name}.memory_ratio": made["ours"][1] / made["nested"][1],
    }
    if "by_hand" in ratios:
        figures[f"{name}.over_hand_written"] = ratios["by_hand"]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--default-scheduler", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    compiler_options = None if options.default_scheduler else _IN_MEMORY_ORDER
    figures = {}
    for name in [options.case] if options.case else CASES:
        measured = measure(name, options.rounds, compiler_options)
        for figure, value in measured.items():
            print(f"{figure:28}{value:8.3f}", flush=True)
        figures |= measured
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
