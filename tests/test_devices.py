"""Several devices and processes give what one device gives."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx
from opifex._devices import anywhere, on_host, whole
from opifex._processes import EXIT_PEER_LOST, join_processes

from .helpers import bits, poisson, SAMPLERS


ROOT = pathlib.Path(__file__).parents[1]


def started(fake_devices=1, **options):
    flags = f"--xla_force_host_platform_device_count={fake_devices}"
    environment = os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    command = [sys.executable, "-W", "error", "-m", "tests.devices_worker"]
    return subprocess.Popen(
        [*command, json.dumps(options)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, timeout=300):
    return process.communicate(timeout=timeout)[1], process.returncode


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def pair(out, **options):
    """Both processes of a run of two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options |= {"out": str(out), "devices": [2]}
    return [started(join=[address, 2, i], **options) for i in range(2)]


def done(processes):
    # All have ended before anything is said of one of them.
    for errors, code in [ended(process) for process in processes]:
        assert code == 0, errors


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What one, two, four and eight of the devices of a single process give."""
    out = str(tmp_path_factory.mktemp("together") / "a.npz")
    kinds = [
        f"{kind}{precision}"
        for kind in ("points", "members", "judged members")
        for precision in ("", " in single precision")
    ]
    done([started(8, kinds=kinds, out=out, devices=[1, 2, 4, 8])])
    return arrays(out)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_many_devices_give_what_one_gives(together, devices):
    alone = [name for name in together if name.endswith(" 1")]
    assert len(alone) == len(together) / 4 > 6
    for name in alone:
        one, many = together[name], together[f"{name[:-1]}{devices}"]
        dtype = "float32" if "single precision" in name else "float64"
        assert one.dtype == dtype
        tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(many, one, rtol=0, atol=tolerance)


def test_two_processes_are_two_devices_and_outlive_each_other(together, tmp_path):
    out, folder = tmp_path / "two.npz", str(tmp_path / "two")
    survivor, killed = pair(out, kinds=["points"], folder=folder, kill_after=3)
    assert ended(killed)[1] == -9
    errors, code = ended(survivor, timeout=5)
    assert code == EXIT_PEER_LOST and "start all of them again" in errors, errors
    assert not out.exists()
    kinds = ["points", "members", "judged members"]
    done(pair(out, kinds=kinds, folder=folder))
    found = arrays(out)
    assert {name.rsplit(maxsplit=2)[0] for name in found} == set(kinds)
    for name in found:
        np.testing.assert_array_equal(found[name], together[name])


def test_one_device_is_nothing_new():
    wrapped = opx.DataParallel(SAMPLERS["rad"](), jax.devices()[:1])
    states = []
    for sampler in (SAMPLERS["rad"](), wrapped):
        recipe, model = poisson(sampler=sampler, steps=2, optim=optax.sgd(1e-3))
        chunk = eqx.filter_jit(recipe)  # two, as the first places new points
        states.append(chunk(chunk(recipe.init(model, key=jr.key(1)))[0])[0])
    for a, b in zip(*map(bits, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_process_agrees_with_itself():
    tree = {"x": jnp.arange(3.0), "key": jr.key(3), "name": "a"}
    placed = opx.shared_out({"x": jnp.arange(3.0)}, jax.devices()[:1])
    np.testing.assert_array_equal(on_host(placed)["x"], np.arange(3.0))
    for same in (opx.replicated(tree, jax.devices()), opx.local(tree), whole(tree)):
        assert same["name"] == "a" and same["key"].dtype == tree["key"].dtype
        np.testing.assert_array_equal(same["x"], tree["x"])
    assert anywhere(True, False) == (True, False)


def test_bad_input():
    with pytest.raises(ValueError, match="`devices` is empty"):
        opx.DataParallel(SAMPLERS["uniform"](), ())
    with pytest.raises(ValueError, match="`process_id` is missing: give all of"):
        join_processes("127.0.0.1:1", 2)
    devices = jax.devices()[:1] * 3  # nothing is placed on them
    sampler = opx.DataParallel(SAMPLERS["uniform"](), devices)
    message = re.escape("3 `devices` divide no set of the batch evenly")
    with pytest.raises(ValueError, match=message):
        sampler.batch(None, jr.key(0), jnp.zeros((), jnp.int32))
