"""What `fit` costs over a bare scan, and what naive loops cost over `fit`.

    python benchmarks/loop_overhead.py [--rounds 15] [--json FILE]

Ratios of CPU times, interleaved, medians over rounds, compilation left out:

- `burgers.fit_over_scan`: Burgers' equation, 2-64-64-64-64-1 tanh, 4096 points, Adam.
- `small.fit_over_scan`: a 1-32-32-1 regression, 1024 rows in shuffled batches of 64,
  1000 epochs, in chunks of 100.
- `small.jit_loop_over_fit`: a Python loop over a jitted step that reads every loss.
- `small.nnx_loop_over_fit`: the same with `nnx.jit` and `nnx.Optimizer`.
- `small.short_chunks_over_fit`: `fit` again, in chunks of one epoch (16 steps).
- `small.trainer_over_fit`, `small.basic_trainer_over_fit`: the documented trainers, on
    the same network as a module of NNX, with the losses of every epoch.

`fit` runs with `Backtrack`, keeps the best state, and as history of every step the
loss, its term and weight, the norm of the gradient and of each array of it, the length
of the step and the verdict: 12 numbers in the small problem, 16 in Burgers'. The bare
scan keeps the loss. All compute the same loss, in float32.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from _measure import median_ratios
from flax import nnx

import opifex as opx
from opifex.core.training.config import TrainingConfig
from opifex.core.training.trainer import Trainer
from opifex.neural import MLP
from opifex.neural.base import StandardMLP
from opifex.training.basic_trainer import BasicTrainer
from opifex.zoo import make_benchmark


# The naive loops run fewer epochs, and are compared by the step.
ROWS, BATCH, EPOCHS, NAIVE_EPOCHS = 1024, 64, 1000, 50


def fitted(recipe, model, num_chunks):
    state = recipe.init(model, key=jr.key(0))

    def run():
        history = []
        collect = opx.Collect(history.append)
        end = opx.fit(recipe, state, num_chunks=num_chunks, callbacks=[collect])
        return end, opx.join(history)

    return run


def updater(loss, optim):
    """One step, as everybody writes it."""

    def update(params, opt_state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = optim.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return update


def burgers(rounds):
    problem, optim = make_benchmark("burgers", jnp.float32).problem, optax.adam(1e-3)
    sizes = (problem.features, 64, 64, 64, 64, 1)
    net = problem.impose(MLP(sizes, key=jr.key(0), dtype=jnp.float32))
    points = {"interior": jr.uniform(jr.key(1), (4096, 2), jnp.float32)}

    params, static = eqx.partition(net, opx.trainable(net))

    def loss(params, batch):
        net = eqx.combine(params, static)
        return jnp.mean(problem.residuals(net, batch)["interior"] ** 2)

    update = updater(loss, optim)

    @jax.jit
    def scan(params, points):
        def step(carry, _):
            *carry, value = update(*carry, points)
            return carry, value

        return jax.lax.scan(step, [params, optim.init(params)], None, length=60)

    recipe = opx.Recipe(problem, optim, opx.Fixed(points), steps=15)
    runs = {
        "scan": lambda: jax.block_until_ready(scan(params, points)),
        "fit": fitted(recipe, net, 4),
    }
    return {"burgers.fit_over_scan": median_ratios(runs, "scan", rounds)["fit"]}


def small(rounds):
    x = jnp.linspace(-1, 1, ROWS, dtype=jnp.float32)[:, None]
    y = jnp.sin(3 * x)
    net = eqx.nn.MLP(1, 1, 32, 2, jnp.tanh, key=jr.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    optim, per_epoch = optax.adam(1e-3), ROWS // BATCH

    def loss(params, batch):
        x, y = batch
        return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)

    update = updater(loss, optim)
    jitted = jax.jit(update)

    @jax.jit
    def scan(params, x, y):
        def epoch(carry, i):
            order = jr.permutation(jr.fold_in(jr.key(0), i), ROWS)

            def step(carry, rows):
                *carry, value = update(*carry, (x[rows], y[rows]))
                return carry, value

            return jax.lax.scan(step, carry, order.reshape(per_epoch, BATCH))

        return jax.lax.scan(epoch, [params, optim.init(params)], jnp.arange(EPOCHS))

    def shuffled_batches():
        for i in range(NAIVE_EPOCHS):
            order = jr.permutation(jr.fold_in(jr.key(0), i), ROWS)
            shuffled_x, shuffled_y = x[order], y[order]
            for start in range(0, ROWS, BATCH):
                rows = slice(start, start + BATCH)
                yield shuffled_x[rows], shuffled_y[rows]

    def jit_loop():
        carry, history = (params, optim.init(params)), []
        for batch in shuffled_batches():
            *carry, value = jitted(*carry, batch)
            history.append(float(value))

    def nnx_loop():
        model = NNXNet(rngs=nnx.Rngs(0))
        optimizer, history = nnx.Optimizer(model, optim, wrt=nnx.Param), []
        for batch in shuffled_batches():
            history.append(float(nnx_update(model, optimizer, batch)))

    def trained(kind):
        model = StandardMLP([1, 32, 32, 1], "tanh", rngs=nnx.Rngs(0))
        config = TrainingConfig(num_epochs=EPOCHS, batch_size=BATCH, progress=False)
        trainer = kind(model, config)
        return lambda: trainer.train((x, y))

    sampler = opx.Minibatch(x, y, BATCH)
    recipe = opx.Recipe(opx.Supervised(), optim, sampler, steps=100 * per_epoch)
    by_epoch = replace(recipe, steps=per_epoch)
    runs = {
        "scan": lambda: jax.block_until_ready(scan(params, x, y)),
        "fit": fitted(recipe, net, EPOCHS // 100),
        "short_chunks": fitted(by_epoch, net, EPOCHS),
        "jit_loop": jit_loop,
        "nnx_loop": nnx_loop,
        "trainer": trained(Trainer),
        "basic_trainer": trained(BasicTrainer),
    }
    long, short = EPOCHS * per_epoch, NAIVE_EPOCHS * per_epoch
    steps = dict.fromkeys(runs, long) | {"jit_loop": short, "nnx_loop": short}
    ratios = median_ratios(runs, "scan", rounds, steps)
    return {
        "small.fit_over_scan": ratios["fit"],
        "small.short_chunks_over_fit": ratios["short_chunks"] / ratios["fit"],
        "small.jit_loop_over_fit": ratios["jit_loop"] / ratios["fit"],
        "small.nnx_loop_over_fit": ratios["nnx_loop"] / ratios["fit"],
        "small.trainer_over_fit": ratios["trainer"] / ratios["fit"],
        "small.basic_trainer_over_fit": ratios["basic_trainer"] / ratios["fit"],
    }


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(1, 32, rngs=rngs)
        self.second = nnx.Linear(32, 32, rngs=rngs)
        self.third = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.third(jnp.tanh(self.second(jnp.tanh(self.first(x)))))


@nnx.jit
def nnx_update(model, optimizer, batch):
    x, y = batch
    value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = burgers(options.rounds) | small(options.rounds)
    for name, value in figures.items():
        print(f"{name:28}{value:8.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
