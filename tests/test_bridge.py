import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import opifex as opx
from opifex.core.training.config import TrainingConfig
from opifex.core.training.trainer import Trainer
from opifex.neural import MLP
from opifex.nnx.bridge import NNXModel
from opifex.nnx.models import apply_of, as_pytree, is_per_point, predict


X = jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(6, 2)
Y = jnp.sin(3 * X[:, :1])


class Net(nnx.Module):
    """Everything that NNX keeps beside its parameters."""

    def __init__(self, rngs):
        self.first = nnx.Linear(2, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.tail = nnx.List([nnx.Linear(8, 1, rngs=rngs)])
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        hidden = self.drop(jnp.tanh(self.norm(self.first(x))))
        self.hidden = nnx.Intermediate(hidden)
        return self.tail[0](hidden)


def values(module):
    """By path, every variable of a module that it was made with."""
    model = NNXModel.of(module)
    found = model.params | model.rest.value
    return {k: np.asarray(v) for k, v in found.items() if "hidden" not in k}


def assert_close(one, other, tol):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], tol, tol, err_msg=name)


def test_there_and_back():
    module, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(1))
    model = NNXModel.of(module)
    assert set(model.params) == {
        "first.kernel", "norm.scale", "norm.bias", "tail.0.kernel", "tail.0.bias"
    }  # fmt: skip
    assert set(model.rest.value) == {
        "norm.mean", "norm.var", "drop.rngs.count", "drop.rngs.key", "calls"
    }  # fmt: skip
    # Two of a kind are one structure, so that what is compiled for one is for all.
    assert jax.tree.structure(model) == jax.tree.structure(NNXModel.of(other))
    assert hash(model.layout) == hash(NNXModel.of(other).layout)
    model.write_to(other)
    assert_close(values(module), values(other), 0.0)
    assert "layout" not in repr(model)


def test_only_params_are_trained():
    model = NNXModel.of(Net(nnx.Rngs(0)))
    trained = eqx.filter(model, opx.trainable(model))
    assert len(jax.tree.leaves(trained)) == len(model.params)
    assert not jax.tree.leaves(trained.rest)


def test_update_is_what_the_module_does_and_call_is_evaluation():
    module = Net(nnx.Rngs(0))
    model = NNXModel.of(module)
    answer, new = jax.jit(lambda m, x: m.update(x))(model, X)
    np.testing.assert_allclose(answer, module(X), 1e-6, 1e-6)
    assert_close(values(new.module()), values(module), 1e-6)
    assert int(new.rest.value["calls"]) == 1 and int(model.rest.value["calls"]) == 0
    module.eval()
    np.testing.assert_allclose(jax.jit(predict)(new, X), module(X), 1e-6, 1e-6)
    # The mode of the user's module is left alone, and is kept in training.
    assert not NNXModel.of(Net(nnx.Rngs(0))).module().drop.deterministic
    assert NNXModel.of(module).module().drop.deterministic


def test_a_step_is_that_of_a_plain_loop():
    config = TrainingConfig(optimizer=optax.sgd(0.1, momentum=0.9), progress=False)
    ours, theirs = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    trainer = Trainer(ours, config)
    optimizer = nnx.Optimizer(theirs, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    for _ in range(20):
        np.testing.assert_allclose(
            trainer.training_step(X, Y), step(theirs, optimizer), 1e-4
        )
    assert_close(values(ours), values(theirs), 1e-5)
    assert int(values(ours)["calls"]) == 20
    # Evaluation is without dropout, by the running averages.
    theirs.eval()
    expected = jnp.mean((theirs(X) - Y) ** 2)
    np.testing.assert_allclose(trainer.validation_step(X, Y), expected, 1e-4)
    assert int(values(ours)["calls"]) == 20


def test_batches_of_an_epoch_are_those_of_a_plain_loop():
    """Ragged batches apart, for they are filled up with rows that a loop lacks."""
    config = TrainingConfig(
        num_epochs=3, batch_size=3, optimizer=optax.sgd(0.1), progress=False, seed=5
    )
    ours, theirs = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    Trainer(ours, config).train((X, Y))
    sampler, key = opx.Minibatch(X, Y, 3), jr.key(5)
    state = sampler.init(jr.fold_in(jr.fold_in(key, 0), 0))
    optimizer = nnx.Optimizer(theirs, optax.sgd(0.1), wrt=nnx.Param)
    for i in range(6):
        batch = sampler.batch(state, key, jnp.asarray(i, jnp.int32))
        loss = lambda m, b=batch: jnp.mean((m(b.inputs) - b.targets) ** 2)
        optimizer.update(theirs, nnx.grad(loss)(theirs))
    assert_close(values(ours), values(theirs), 1e-5)


class PerPoint(eqx.Module):
    layer: eqx.nn.Linear
    per_point: bool = True

    def __call__(self, x):
        return jnp.tanh(self.layer(x))


class Batched(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return x @ self.weight


LINEAR = eqx.nn.Linear(2, 1, key=jr.key(0))
EQUINOX = {
    "mlp": (MLP((2, 4, 1), key=jr.key(0)), True),
    "equinox": (eqx.nn.MLP(2, 1, 4, 1, key=jr.key(0)), True),
    "declared": (PerPoint(LINEAR), True),
    "batched": (Batched(jnp.ones((2, 1))), False),
    "partial": (jax.tree_util.Partial(lambda w, x: x @ w, jnp.ones((2, 1))), False),
}


@pytest.mark.parametrize("name", EQUINOX)
def test_other_pytrees(name):
    model, per_point = EQUINOX[name]
    assert as_pytree(model) is model and is_per_point(model) == per_point
    x = X.astype(float)
    expected = jax.vmap(model)(x) if per_point else model(x)
    np.testing.assert_array_equal(predict(model, x), expected)
    answer, after = apply_of(model)(model, x, jr.key(0))
    np.testing.assert_array_equal(answer, expected)
    assert after is model


def test_dropout_of_equinox():
    layers = [LINEAR, eqx.nn.Dropout(0.5)]
    model = eqx.nn.Sequential(layers)
    x = X.astype(float)
    apply = apply_of(model)
    one, same, other = (apply(model, x, jr.key(i))[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any() and (one == 0).any()
    np.testing.assert_array_equal(predict(model, x), jax.vmap(LINEAR)(x))


class Silent(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones(2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Silent(), "not callable"),
        (3.0, "callable"),
        (jnp.sin, "no array to train"),
    ],
)
def test_what_is_no_model(model, message):
    with pytest.raises(TypeError, match=message):
        Trainer(model, TrainingConfig())
