"""Checkpoints on bad days. The long campaigns are in tests/faults."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import resource
import subprocess
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import opifex as opx
from opifex._checkpoint import Store
from opifex._layout import one_by_one
from opifex._manifest import digest, leaves_of, make_manifest, spec
from opifex._memory import advice_on_memory
from opifex._optimizer.memory import device_memory
from opifex._restore import open_manager

from .faults.damage import campaign
from .faults.inject import Faulty, Firing, Spoiling
from .faults.small import make
from .helpers import assert_same_bits, bits, DOMAINS, mlp, NUM_POINTS


@pytest.fixture(scope="module")
def state():
    return make()[1]


def at(state, step):
    """`state` as if of another step."""
    return replace(state, step=jnp.asarray(step, jnp.int32))


def write(folder, states, **options):
    store = Store(folder, **options)
    for loss, x in states:
        store.save(x, loss=loss)
    store.close()


def test_no_damage_is_believed():
    count = campaign(20, 1, 60)
    assert count["mutations"] == 20 and count["fell_back"] > 0
    assert count["silent"] == count["hangs"] == 0


def test_the_best_stay_beside_the_latest(state, tmp_path):
    losses = [3.0, 1.0, 2.0, float("nan"), 5.0]
    states = [(loss, at(state, i + 1)) for i, loss in enumerate(losses)]
    write(tmp_path, states[:3], keep=1, keep_best=1)
    write(tmp_path, states[3:], keep=1, keep_best=1)
    assert {p.name for p in tmp_path.glob("[0-9]*")} == {"2", "5"}
    assert opx.best_step(tmp_path) == 2
    assert_same_bits(opx.restore(tmp_path, state, step=2), at(state, 2))
    with pytest.raises(FileNotFoundError, match=r"`step` = 4.*\[2, 5\]"):
        opx.restore(tmp_path, state, step=4)


def older(number, state):
    """The manifest and the arrays of a checkpoint of that format."""
    leaves = leaves_of(state)
    if number == 1:
        leaves = [leaf for leaf in leaves if leaf[1].size]
        manifest = {"step": 0, "leaves": spec(leaves), "sha256": digest(leaves)}
        return manifest, one_by_one(leaves)
    manifest = make_manifest(0, leaves, None, None) | {"format": number}
    del manifest["manifest_sha256"]
    sha256 = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return manifest | {"manifest_sha256": sha256}, one_by_one(leaves)


@pytest.mark.parametrize("number", [1, 2])
def test_older_formats_are_still_read(number, state, tmp_path, caplog):
    manifest, arrays = older(number, state)
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), manifest=ocp.args.JsonSave(manifest)
    )
    manager = open_manager(tmp_path, ocp.CheckpointManagerOptions(create=False))
    with contextlib.closing(manager):
        manager.save(0, args=items)
        manager.wait_until_finished()
    assert_same_bits(opx.restore(tmp_path, state), state)
    assert ("format 1" in caplog.text) == (number == 1)
    path = tmp_path / "0/manifest/metadata"
    path.write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(opx.CorruptCheckpoint, match="format 99.*newer opifex"):
        opx.restore(tmp_path, state)


def test_nothing_is_compiled_for_a_restored_state(tmp_path):
    recipe, first = make()
    static = eqx.filter(first, eqx.is_array, inverse=True)
    arrays_of = lambda state: eqx.filter(state, eqx.is_array)
    chunk = jax.jit(lambda x: arrays_of(recipe(eqx.combine(x, static))[0]))
    arrays = chunk(chunk(arrays_of(first)))
    before = chunk._cache_size()
    write(tmp_path, [(None, eqx.combine(arrays, static))])
    chunk(arrays_of(opx.restore(tmp_path, first)))
    assert chunk._cache_size() == before
    chunk(jax.device_put(arrays, jax.devices()[0]))
    assert chunk._cache_size() == before + 1  # it would show


def test_one_writer_a_directory(state, tmp_path):
    store = Store(tmp_path)
    with pytest.raises(BlockingIOError, match=f"another run, process {os.getpid()}"):
        Store(tmp_path)
    store.save(state)
    store.wait()
    assert_same_bits(opx.restore(tmp_path, state), state)  # reading needs no lock
    with pytest.raises(opx.CheckpointError, match="one of step 0 already"):
        store.save(state)
    store.close()
    Store(tmp_path).close()


def test_the_clock_may_run_backwards(state, tmp_path):
    write(tmp_path, [(None, at(state, i)) for i in (1, 2, 3)])
    for i in (1, 2, 3):
        seconds = 10**9 - 1000 * i
        os.utime(tmp_path / str(i), (seconds, seconds))
    assert opx.restore(tmp_path, state).step == 3


def test_another_configuration_is_refused_by_its_fields(state, tmp_path):
    config = {"problem": "burgers", "seed": 0}
    write(tmp_path, [(None, state)], config=config)
    assert_same_bits(opx.restore(tmp_path, state, config=config), state)
    with pytest.raises(opx.ConfigurationMismatch, match="`seed` was 0 and is 1"):
        opx.restore(tmp_path, state, config=config | {"seed": 1})


def test_another_environment_is_named(state, tmp_path, caplog):
    with jax.default_matmul_precision("highest"):
        write(tmp_path, [(None, state)])
    with caplog.at_level(logging.WARNING):
        assert_same_bits(opx.restore(tmp_path, state), state)
    assert "`matmul_precision` was 'highest' and is None" in caplog.text


def test_a_run_goes_on_in_a_directory_with_a_damaged_checkpoint(tmp_path):
    recipe, first = make()
    run = lambda s, n: opx.fit(
        recipe, s, num_chunks=n, callbacks=[opx.Checkpoint(tmp_path)]
    )
    whole = run(first, 2)
    for path in (tmp_path / "10/state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert_same_bits(run(opx.restore(tmp_path, first), 1), whole)
    assert (tmp_path / "damaged-10").is_dir()
    with pytest.raises(ValueError, match="step 10, and the run begins at step 0"):
        run(first, 1)


# Orbax leaves an event loop open when a write fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_ends_the_run_with_its_best_state(tmp_path):
    recipe, first = make()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(infos):
        del infos  # no file may grow beyond 64 bytes from the second chunk on
        calls.append(None)
        if len(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))

    calls, callbacks = [], [opx.Collect(lambda infos: fill(infos))]
    try:
        with pytest.raises(opx.TrainingError, match="could not be written") as error:
            opx.fit(
                recipe,
                first,
                num_chunks=50,
                callbacks=[*callbacks, opx.Checkpoint(tmp_path, asynchronous=False)],
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(calls) == 2 and error.value.state.step == 10
    assert isinstance(error.value.__cause__, opx.CheckpointError)
    assert opx.restore(tmp_path, first).step == 5
    Store(tmp_path).close()
    assert not list(tmp_path.glob("*tmp*"))


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system in memory with given options, and unmounts it."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this process may not mount: {done.stderr.strip()}")
        return place

    yield mount
    while place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_directory_is_read_and_not_written(state, mounted):
    place = mounted("size=8m")
    write(place, [(None, state)])
    mounted("remount,ro")
    assert_same_bits(opx.restore(place, state), state)
    with pytest.raises(OSError, match="`directory` cannot be written.*Read-only"):
        Store(place)


# As above, of Orbax.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_file_system_ends_the_run_with_its_best_state(mounted):
    recipe, first = make()
    place = mounted("size=512k")

    def fill(infos):
        del infos
        calls.append(None)
        if len(calls) == 2:
            with contextlib.suppress(OSError), open(place / "full", "wb", 0) as file:
                while True:
                    file.write(bytes(4096))

    calls, store = [], opx.Checkpoint(place, asynchronous=False)
    with pytest.raises(opx.TrainingError, match="could not be written") as error:
        opx.fit(recipe, first, num_chunks=9, callbacks=[opx.Collect(fill), store])
    assert error.value.state.step == 10
    assert opx.restore(place, first).step == 5
    (place / "full").unlink()
    resumed = opx.fit(
        recipe, opx.restore(place, first), num_chunks=1, callbacks=[store]
    )
    assert_same_bits(opx.restore(place, first), resumed)
    assert not list(place.glob("*tmp*"))


@pytest.mark.parametrize("members", [1, 2])
def test_a_batch_that_does_not_fit(members):
    """XLA refuses to allocate terabytes on every machine."""
    sampler = opx.Uniform({"inside": opx.Box([0.0], [1.0])}, {"inside": 10**12})
    recipe = opx.Recipe(Square(), optax.sgd(1e-3), sampler, opx.Skip(), steps=1)
    one = lambda key: recipe.init(jnp.ones(()), key=key)
    start, chunk = one(jr.key(0)), recipe
    if members > 1:
        chunk = opx.Ensemble(recipe)
        start = opx.ensemble(one, jr.split(jr.key(0), members))
    with pytest.raises(opx.TrainingError) as error:
        opx.fit(chunk, start, num_chunks=1)
    cause, message = error.value.__cause__, str(error.value)
    asked = int(re.search(r"allocating (\d+) bytes", str(cause))[1])
    assert asked > 10**12
    assert f"asked for {asked / 1e9:.3g} GB" in message
    assert "{'inside': 1000000000000}" in message and "Reduce the points" in message
    fitting = int(re.search(r"about \{'inside': (\d+)\} would fit", message)[1])
    parts = int(re.search(r"`accumulate=(\d+)`", message)[1])
    assert fitting * asked / 10**12 < 0.81 * device_memory()
    assert 1e12 / fitting == pytest.approx(parts, rel=0.01)
    assert ("`batch_size` of `Ensemble`" in message) == (members > 1)
    assert_same_bits(error.value.state.model, start.model)


class Square(opx.AbstractResidualProblem):
    def residuals(self, model, batch):
        return {name: model * x[:, 0] for name, x in batch.items()}


def test_messages_that_name_no_number_or_another_unit():
    error = jax.errors.JaxRuntimeError
    recipe, first = make()
    say = lambda text: advice_on_memory(error(text), recipe, first)
    assert say("INTERNAL: something else") is None
    assert "did not fit into memory" in say("RESOURCE_EXHAUSTED: no more")
    big = say("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.00TiB.")
    assert "asked for 2.2e+03 GB" in big


@pytest.mark.parametrize("what", ["step", "file", "lock"])
def test_links_are_not_followed(what, state, tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    write(run, [(None, state)])
    place = {"step": "0", "file": "0/manifest/metadata", "lock": ".lock"}[what]
    (run / place).rename(outside)
    (run / place).symlink_to(outside)
    if what == "lock":
        with pytest.raises(OSError) as error:
            Store(run)
        assert error.value.__cause__ is None and os.strerror(errno.ELOOP) in str(
            error.value
        )
        return
    with pytest.raises(opx.CorruptCheckpoint, match="is a link"):
        opx.restore(run, state)


ADAM = optax.adam(1e-3)  # one for all, so that a place is compiled once


@pytest.mark.parametrize("where", ["data", "gradient", "parameters"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_a_fault_at_one_step_is_survived(where, value):
    """Against the run of the same program in which it never fires."""

    def run(at):
        steps, spoiled = jnp.array([at], jnp.int32), jnp.array(value)
        sampler = Firing(opx.Uniform(DOMAINS, NUM_POINTS), steps)
        recipe = opx.Recipe(Faulty(Line(), spoiled, where), ADAM, sampler, steps=10)
        state = recipe.init(mlp(jr.key(0), width=4), key=jr.key(1))
        chunk = Spoiling(recipe, steps, spoiled) if where == "parameters" else recipe
        collect = opx.Collect((chunks := []).append)
        state = opx.fit(chunk, state, num_chunks=12, callbacks=[collect])
        return state, opx.join(chunks)

    (state, infos), (_, clean) = run(75), run(-1)
    assert not np.any(clean.result._value)
    faults = np.flatnonzero(infos.result._value)
    assert faults.size and faults[0] in (75, 76)
    assert state.progress.result == opx.RESULTS.successful
    assert all(np.isfinite(x).all() for x in bits(state.model))
    # What went before it is untouched, and what was learned is not lost.
    np.testing.assert_array_equal(infos.loss[:75], clean.loss[:75])
    learned = np.mean(infos.loss[-10:]) < np.mean(clean.loss[:10])
    assert learned, (np.mean(infos.loss[-10:]), np.mean(clean.loss[:10]))


class Line(opx.AbstractResidualProblem):
    """u = x and no derivatives, which is quick to compile."""

    def residuals(self, model, batch):
        return {n: (jax.vmap(model)(x) - x)[:, 0] for n, x in batch.items()}
