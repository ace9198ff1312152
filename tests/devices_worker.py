"""Trains on several devices, in a process of its own or in one of many.

`python -m tests.devices_worker '{"out": ..., "devices": [1, 8], ...}'`
"""

import json
import os
import signal
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import opifex as opx
from opifex._processes import is_first, join_processes


OPTIONS = json.loads(sys.argv[1])
if "join" in OPTIONS:  # before the helpers make arrays
    join_processes(*OPTIONS.pop("join"))

from tests.helpers import bits, mlp, Poisson, SAMPLERS  # noqa: E402


NUM_CHUNKS = 4


class Kill(opx.AbstractCallback):
    """Ends the process after some chunks, as a machine that fails would."""

    after: int

    def init(self, state, num_chunks):
        del state, num_chunks

    def on_chunk(self, memory, state, infos):
        del infos
        if int(state.progress.epoch) == self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return memory, False

    def close(self, memory, state):
        pass


def recipe(sampler, recovery=opx.Skip()):
    # Not Adam: it divides by gradients that are near zero, and so magnifies rounding.
    optim = optax.sgd(1e-3, momentum=0.9)
    return opx.Recipe(Poisson(), optim, sampler, recovery=recovery, steps=3)


def points(devices, dtype, folder=None, kill_after=0):
    """A run whose points are shared out, from the newest checkpoint if there is one."""
    chunk = recipe(opx.DataParallel(SAMPLERS["uniform"](), devices))
    model = mlp(jr.key(1), dtype=dtype)
    state = opx.replicated(chunk.init(model, key=jr.key(1)), devices)
    callbacks = []
    if folder:
        if os.path.exists(folder):
            state = opx.restore(folder, state)
        callbacks.append(opx.Checkpoint(folder))
    if kill_after and jax.process_index() == 1:
        callbacks.append(Kill(kill_after))
    left = NUM_CHUNKS - int(state.progress.epoch)
    return opx.fit(chunk, state, num_chunks=left, callbacks=callbacks)


def members(devices, dtype, recovery=opx.Skip(), validation=None):
    """An ensemble whose members are shared out."""
    one = recipe(SAMPLERS["uniform"](), recovery)
    start = lambda key: one.init(mlp(key, dtype=dtype), key=key)
    states = opx.shared_out(eqx.filter_vmap(start)(jr.split(jr.key(2), 8)), devices)
    chunk = opx.Ensemble(one, devices=tuple(devices))
    return opx.fit(chunk, states, num_chunks=NUM_CHUNKS, validation=validation)


def trained(devices, kinds, folder=None, kill_after=0):
    for kind in kinds:
        dtype = jnp.float32 if kind.endswith("single precision") else jnp.float64
        if kind.startswith("points"):
            yield kind, points(devices, dtype, folder, kill_after)
        elif kind.startswith("judged"):
            yield kind, members(devices, dtype, validation=opx.Validation(patience=2))
        else:
            yield kind, members(devices, dtype, opx.Backtrack())


def main(out, devices, kinds, folder=None, kill_after=0):
    found = {}
    for count in devices:
        for kind, state in trained(jax.devices()[:count], kinds, folder, kill_after):
            for i, x in enumerate(bits(opx.local(state.model))):
                found[f"{kind} {i} {count}"] = x
    if is_first():
        np.savez(out, **found)


if __name__ == "__main__":
    main(**OPTIONS)
