import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import opifex as opx

from .helpers import (
    assert_same_bits,
    bits,
    mlp,
    regression,
)


def test_leaves_that_orbax_minds(key, tmp_path):
    """Keys, empty arrays, numbers of every kind, buffers that are not trained."""
    recipe, model = regression()
    odd = {
        "empty": jnp.zeros((0, 3)),
        "half": jnp.ones(3, jnp.bfloat16),
        "keys": jr.split(key, 2),
        "nan": jnp.array([jnp.nan, -0.0], jnp.float32),
    }
    problem = opx.Supervised(apply=lambda m, x, key: (jax.vmap(m[0])(x), m))
    recipe = eqx.tree_at(lambda r: r.problem, recipe, problem)
    trainable = lambda m: (opx.trainable(m[0]), False)
    recipe = eqx.tree_at(lambda r: r.trainable, recipe, trainable)
    state = recipe.init((model, odd), key=key)
    state = opx.fit(recipe, state, num_chunks=1, callbacks=[opx.Checkpoint(tmp_path)])
    assert_same_bits(opx.restore(tmp_path, state), state)


def damage(folder, step, rng):
    """Flips one byte of every larger file of a checkpoint."""
    for path in (folder / str(step)).rglob("*"):
        if path.is_file() and path.stat().st_size > 64:
            content = bytearray(path.read_bytes())
            content[rng.integers(len(content) // 2, len(content))] ^= 0xFF
            path.write_bytes(content)


def test_a_damaged_checkpoint_is_never_believed(key, tmp_path, caplog):
    recipe, model = regression()
    state = recipe.init(model, key=key)
    older = opx.fit(recipe, state, num_chunks=1)
    opx.fit(recipe, state, num_chunks=2, callbacks=[opx.Checkpoint(tmp_path)])
    damage(tmp_path, 20, np.random.default_rng(0))
    assert_same_bits(opx.restore(tmp_path, state), older)
    assert "step 20" in caplog.text
    damage(tmp_path, 10, np.random.default_rng(1))
    with pytest.raises(opx.CheckpointError, match="step 20.*step 10"):
        opx.restore(tmp_path, state)


def test_another_model_is_refused_by_name(key, tmp_path):
    recipe, model = regression()
    state = recipe.init(model, key=key)
    opx.fit(recipe, state, num_chunks=1, callbacks=[opx.Checkpoint(tmp_path)])
    wider = recipe.init(mlp(jr.key(1), width=9), key=key)
    with pytest.raises(opx.CheckpointError, match=r"\.model\.layers\[0\]\.weight is"):
        opx.restore(tmp_path, wider)
    single = mlp(jr.key(1), dtype=jnp.float32)
    single = opx.init(recipe.optim, recipe.sampler, recipe.recovery, single, key=key)
    with pytest.raises(opx.CheckpointError, match=r"float64.*float32"):
        opx.restore(tmp_path, single)


def test_bad_directories(key, tmp_path):
    recipe, model = regression()
    state = recipe.init(model, key=key)
    (tmp_path / "file").write_text("")
    calls = []
    with pytest.raises(OSError, match="`directory` cannot be written"):
        opx.fit(
            recipe,
            state,
            num_chunks=1,
            callbacks=[opx.Collect(calls.append), opx.Checkpoint(tmp_path / "file/in")],
        )
    assert not calls
    with pytest.raises(FileNotFoundError, match="`directory` does not exist"):
        opx.restore(tmp_path / "nowhere", state)
    os.mkdir(tmp_path / "empty")
    with pytest.raises(opx.CheckpointError, match="there is none"):
        opx.restore(tmp_path / "empty", state)
    run = tmp_path / "run"
    opx.fit(recipe, state, num_chunks=1, callbacks=[opx.Checkpoint(run)])
    with pytest.raises(ValueError, match="step 10, and the run begins at step 0"):
        opx.fit(recipe, state, num_chunks=1, callbacks=[opx.Checkpoint(run)])


def test_tensorboard_files_are_written(key, tmp_path):
    recipe, model = regression()
    callback = opx.TensorBoard(tmp_path, every=5)
    opx.fit(recipe, recipe.init(model, key=key), num_chunks=1, callbacks=[callback])
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    assert b"loss" in content and b"term/data" in content and b"grad_norm" in content


def test_the_manifest_is_plain_json(key, tmp_path):
    recipe, model = regression()
    state = recipe.init(model, key=key)
    opx.fit(recipe, state, num_chunks=1, callbacks=[opx.Checkpoint(tmp_path)])
    manifest = json.loads((tmp_path / "10/manifest/metadata").read_text())
    assert manifest["step"] == 10
    assert [".step", "int32", []] in manifest["leaves"]


def test_a_run_that_diverged_leaves_a_checkpoint_of_its_best_state(key, tmp_path):
    recipe, model = regression(optim=optax.sgd(1e6), recovery=opx.NoRecovery())
    state = recipe.init(model, key=key)
    with pytest.raises(opx.TrainingError) as error:
        opx.fit(recipe, state, num_chunks=5, callbacks=[opx.Checkpoint(tmp_path)])
    restored = opx.restore(tmp_path, state)
    assert restored.step >= error.value.state.step
    assert all(np.isfinite(x).all() for x in bits(restored.model))
