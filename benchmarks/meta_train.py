"""Meta-training of the learned optimizer that is shipped, and what it is worth.

    python benchmarks/meta_train.py [--minutes 12] [--steps 12000] [--peak 2e-3]
        [--late 0] [--seed 0] [--start FILE] [--resume] [--out DIR]
    python benchmarks/meta_train.py --install DIR
    python benchmarks/meta_train.py --evaluate [--json FILE]

The shipped weights are of two runs: with the defaults, ended after 9000 steps; and on
from its weights (`--start`) with `--seed 1 --peak 1e-3 --late 2 --steps 4800`, ended by
the clock after 4680, so that the end of a run counts more than its beginning.

The first trains on the families below, and keeps where it is in `DIR/state.npz` and the
weights in `DIR/weights.npz`; `--resume` goes on from there. `--install` copies those
weights into the package. `--evaluate` compares the shipped weights with Adam.

Families, each of networks with two hidden layers of 12 and `tanh`, coefficients drawn
at random: regression (sums of four sines), Poisson in 1-D (`u'' = f` with `u` such a
sum, values at the ends), heat and advection (`u_t + c u_x = nu u_xx` with a sine at the
start, on a fixed grid of 36 points). Held out, and not looked at in training: other
seeds of the coefficients, on ranges that are 1.5 times as wide, and networks of two
hidden layers of 24 and of three of 16.

- `learned.loss_ratio`: median over held-out tasks of the final loss of the learned
    optimizer over that of Adam, both after 1000 steps (geometric mean of the last 50
    losses), Adam with its best constant learning rate on that task out of `RATES`.
- `learned.step_ratio`: median over these of 1000 over the steps that the learned
    optimizer takes to Adam's final loss; 0 where it does not reach it in 1000.
- `learned.loss_ratio_default`, `learned.step_ratio_default`: the same against Adam with
    its default learning rate of 1e-3.
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from opifex._optimizer.learned.network import random_weights
from opifex._optimizer.learned.pes import PES, Task
from opifex._optimizer.learned.storage import (
    load_provenance,
    load_weights,
    save_weights,
    SHIPPED,
)
from opifex.optimization import MetaOptimizer


STEPS, WINDOW = 1000, 50
RATES = (3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
TRAINED = ((12, 12),)
HELD_OUT = ((24, 24), (16, 16, 16))
SEEDS = 6
# The factor (in front of its tanh) of the steps of Adam from which it sets out: 8.
FACTOR = 2.4
CHUNK = 20


def network(key, inputs, hidden):
    """Glorot's weights, as a list of matrices and biases."""
    sizes = (inputs, *hidden, 1)
    keys = jr.split(key, len(sizes) - 1)
    layers = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [
        (jnp.sqrt(2 / (n + m)) * jr.normal(k, (n, m)), jnp.zeros(m))
        for k, n, m in layers
    ]


def apply(params, x):
    """Values at points of shape `(points, inputs)`."""
    for matrix, bias in params[:-1]:
        x = jnp.tanh(x @ matrix + bias[None])
    matrix, bias = params[-1]
    return (x @ matrix + bias[None])[:, 0]


def along(function, x, axis):
    """The value and the first two derivatives along an axis."""
    direction = jnp.zeros_like(x).at[:, axis].set(1)
    first = lambda x: jax.jvp(function, (x,), (direction,))
    (value, slope), (_, curvature) = jax.jvp(first, (x,), (direction,))
    return value, slope, curvature


LINE = jnp.linspace(-1, 1, 32)[:, None]
GRID = jnp.stack(jnp.meshgrid(jnp.linspace(-1, 1, 6), jnp.linspace(0, 1, 6)), -1)
GRID = GRID.reshape(-1, 2)
START = jnp.stack([jnp.linspace(-1, 1, 12), jnp.zeros(12)], -1)


def sines(key, reach):
    """Amplitudes, wave numbers up to `4 * reach` and phases of a sum of four sines."""
    amplitude = reach * jr.normal(jr.fold_in(key, 0), (4,)) / 2
    wave = jr.uniform(jr.fold_in(key, 1), (4,), minval=0.5, maxval=4 * reach)
    return amplitude, wave, jr.uniform(jr.fold_in(key, 2), (4,), maxval=2 * jnp.pi)


def summed(coefficients, x):
    amplitude, wave, phase = coefficients
    angle = wave[None] * x + phase[None]
    value = amplitude[None] * jnp.sin(angle)
    return jnp.sum(value, 1), jnp.sum(-(wave[None] ** 2) * value, 1)


def begin(inputs, hidden, draw, key):
    return network(jr.fold_in(key, 0), inputs, hidden), draw(jr.fold_in(key, 1))


def regression(params, data, key):
    return jnp.mean((apply(params, LINE) - summed(data, LINE)[0]) ** 2)


def poisson(params, data, key):
    value, _, curvature = along(partial(apply, params), LINE, 0)
    wanted, source = summed(data, LINE)
    ends = (value - wanted)[jnp.array([0, -1])]
    return jnp.mean((curvature - source) ** 2) + 10 * jnp.mean(ends**2)


def transport_data(key, reach):
    low, high = jnp.array([-reach, 0.02, 1.0]), jnp.array([reach, 0.2 * reach, 3.0])
    return jr.uniform(key, (3,), minval=low, maxval=high)


def transport(params, data, key):
    """Speed, diffusivity and the wave number at the start in `data`."""
    speed, nu, wave = data
    u = partial(apply, params)
    _, slope, curvature = along(u, GRID, 0)
    rate = jax.jvp(u, (GRID,), (jnp.zeros_like(GRID).at[:, 1].set(1),))[1]
    start = u(START) - jnp.sin(wave * jnp.pi * START[:, 0] / 2)
    equation = rate + speed * slope - nu * curvature
    return jnp.mean(equation**2) + 10 * jnp.mean(start**2)


def families(sizes, reach):
    """By name."""
    kinds = {
        "regression": (1, partial(sines, reach=reach), regression),
        "poisson": (1, partial(sines, reach=reach), poisson),
        "transport": (2, partial(transport_data, reach=reach), transport),
    }
    return {
        f"{name}{hidden}": Task(partial(begin, inputs, hidden, draw), loss)
        for name, (inputs, draw, loss) in kinds.items()
        for hidden in sizes
    }


def losses(task, optim, key):
    """Of every step of a run."""
    params, data = task.init(key)

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(task.loss)(params, data, key)
        updates, state = optim.update(grad, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, optim.init(params)), None, length=STEPS)[1]


def smooth(values):
    """Geometric means of the last `WINDOW` losses, for all steps from there on.

    A run that was lost has infinite ones.
    """
    logs = np.log(np.where(np.isfinite(values), values, np.inf))
    return np.exp([logs[i - WINDOW : i].mean() for i in range(WINDOW, STEPS + 1)])


def compare(task, weights, keys):
    """By seed: final losses of Adam by learning rate, and the learned one's curve."""
    adam = lambda rate: jax.vmap(lambda k: losses(task, optax.adam(rate), k))(keys)
    adam = np.array(jax.jit(jax.vmap(adam))(jnp.array(RATES)))
    ours = jax.vmap(lambda k: losses(task, MetaOptimizer(weights=weights), k))
    curves = np.array([smooth(values) for values in np.array(jax.jit(ours)(keys))])
    finals = np.array([[smooth(v)[-1] for v in of_rate] for of_rate in adam])
    return finals, curves


def ratios(adam, curve):
    reached = np.flatnonzero(curve <= adam)
    steps = STEPS / (reached[0] + WINDOW) if reached.size else 0.0
    return curve[-1] / adam, steps


def evaluate(weights, tasks, keys):
    """Figures, and the same by family for the curious."""
    best, default, chosen, by_family = [], [], [], {}
    for name, task in tasks.items():
        finals, curves = compare(task, weights, keys)
        pairs = list(zip(finals.T, curves, strict=True))
        mine = [ratios(adam.min(), curve) for adam, curve in pairs]
        default += [ratios(adam[RATES.index(1e-3)], curve) for adam, curve in pairs]
        chosen += [RATES[i] for i in finals.argmin(0)]
        by_family[name] = tuple(np.median(mine, 0))
        best += mine
    loss, step = np.median(best, 0)
    loss_default, step_default = np.median(default, 0)
    figures = {
        "learned.loss_ratio": loss,
        "learned.step_ratio": step,
        "learned.loss_ratio_default": loss_default,
        "learned.step_ratio_default": step_default,
    }
    for name, (loss, step) in by_family.items():
        figures[f"{name}.loss_ratio"], figures[f"{name}.step_ratio"] = loss, step
    print("Adam's best learning rates:", sorted(chosen))
    return {name: float(value) for name, value in figures.items()}


def save_state(path, state):
    """All of it in one file: the leaves by number, keys as their data."""
    leaves = [
        np.asarray(
            jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for x in jax.tree.leaves(state)
    ]
    with open(path.with_suffix(".new"), "wb") as file:
        np.savez(file, allow_pickle=False, **{str(i): x for i, x in enumerate(leaves)})
    path.with_suffix(".new").replace(path)


def load_state(path, like):
    leaves, structure = jax.tree.flatten(like)
    with np.load(path, allow_pickle=False) as file:
        read = [jnp.asarray(file[str(i)]) for i in range(len(leaves))]
    whole = [
        jr.wrap_key_data(x) if jnp.issubdtype(old.dtype, jax.dtypes.prng_key) else x
        for x, old in zip(read, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, whole)


def train(options):
    tasks = families(TRAINED, 1.0)
    pes = PES(
        tuple(tasks.values()),
        unroll=20,
        horizon=1500,
        num_pairs=12,
        sigma=0.1,
        late=options.late,
        learning_rate=optax.cosine_decay_schedule(options.peak, options.steps),
    )
    key = jr.key(options.seed)
    begun = random_weights(jr.fold_in(key, 0))
    begun = replace(begun, out_bias=begun.out_bias.at[0].set(FACTOR))
    earlier = []
    if options.start:
        begun = load_weights(options.start)
        origin = load_provenance(options.start)
        earlier = [*origin.pop("earlier", []), origin]
    state = pes.init(key, begun)
    options.out.mkdir(parents=True, exist_ok=True)
    path, spent = options.out / "state.npz", 0.0
    if options.resume:
        state = load_state(path, state)
        spent = load_provenance(options.out / "weights.npz")["cpu_minutes"]
    chunk = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: pes.step(s), s, length=CHUNK),
        donate_argnums=0,
    )

    def going():
        in_time = time.monotonic() - began < 60 * options.minutes
        return in_time and int(state.step) < options.steps

    began, cpu, seen = time.monotonic(), time.process_time(), []
    while going():
        state, values = chunk(state)
        seen.append(float(jnp.mean(values)))
        if len(seen) % 10 and going():
            continue
        minutes = spent + (time.process_time() - cpu) / 60
        print(int(state.step), f"{minutes:.2f} min", np.mean(seen[-10:]), flush=True)
        save_state(path, state)
        origin = {
            "script": "benchmarks/meta_train.py",
            "tasks": list(tasks),
            "seed": options.seed,
            "steps": int(state.step),
            "cpu_minutes": round(minutes, 2),
            "dtype": str(state.weights.out.dtype),
            "method": "persistent evolution strategies",
            "unroll": pes.unroll,
            "horizon": pes.horizon,
            "num_pairs": pes.num_pairs,
            "sigma": pes.sigma,
            "learning_rate": f"{options.peak}, cosine decay in {options.steps} steps",
            "inner_rate": pes.inner_rate,
            "late": pes.late,
            "earlier": earlier,
            "versions": {name: version(name) for name in ("jax", "optax", "opifex")},
        }
        save_weights(options.out / "weights.npz", state.weights, origin)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--late", type=float, default=0.0)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("meta"))
    parser.add_argument("--install", type=Path)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.install:
        shutil.copy(options.install / "weights.npz", SHIPPED)
        return
    if not options.evaluate:
        train(options)
        return
    keys = jr.split(jr.key(12345), SEEDS)
    figures = evaluate(load_weights(), families(HELD_OUT, 1.5), keys)
    for name, value in figures.items():
        print(f"{name:40}{value:12.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
