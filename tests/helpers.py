"""What the tests share: small problems, and one of every public choice."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax

import opifex as opx
from opifex._weighting.annealing import LearningRateAnnealing
from opifex._weighting.augmented_lagrangian import AugmentedLagrangian
from opifex._weighting.causal import Causal
from opifex._weighting.grad_norm import GradNorm
from opifex._weighting.grad_norm_balance import GradNormBalance
from opifex._weighting.ntk import NTK
from opifex._weighting.product import Product
from opifex._weighting.relobralo import ReLoBRaLo
from opifex._weighting.residual_attention import ResidualAttention
from opifex._weighting.scheduled import Scheduled
from opifex._weighting.self_adaptive import SelfAdaptive
from opifex._weighting.soft_adapt import SoftAdapt


class Poisson(opx.AbstractResidualProblem):
    """-u'' = pi^2 sin(pi x) on (-1, 1), u = 0 at the ends; solved by sin(pi x)."""

    def residuals(self, model, batch):
        u = lambda x: model(x[None])[0]
        x = batch["interior"][:, 0]
        u_xx = jax.vmap(jax.grad(jax.grad(u)))(x)
        source = jnp.pi**2 * jnp.sin(jnp.pi * x)
        ends = jax.vmap(u)(batch["boundary"][:, 0])
        return {"interior": u_xx + source, "boundary": ends}


class Sine(opx.AbstractResidualProblem):
    """u = sin(pi x), given at points; no derivatives, which take long to compile."""

    def residuals(self, model, batch):
        return {
            name: jax.vmap(model)(x)[:, 0] - jnp.sin(jnp.pi * x[:, 0])
            for name, x in batch.items()
        }


DOMAINS = {"interior": opx.Box([-1.0], [1.0]), "boundary": opx.Box([1.0], [1.0])}
NUM_POINTS = {"interior": 16, "boundary": 2}

SAMPLERS = {
    "fixed": lambda: opx.Fixed(
        {
            "interior": jnp.linspace(-0.9, 0.9, 16)[:, None],
            "boundary": jnp.array([[-1.0], [1.0]]),
        }
    ),
    "uniform": lambda: opx.Uniform(DOMAINS, NUM_POINTS),
    "sobol": lambda: opx.QuasiRandom(DOMAINS, NUM_POINTS),
    "halton": lambda: opx.QuasiRandom(DOMAINS, NUM_POINTS, sequence=opx.halton),
    "latin_hypercube": lambda: opx.QuasiRandom(
        DOMAINS, NUM_POINTS, sequence=opx.latin_hypercube, shift=False
    ),
    "rad": lambda: opx.RAD(DOMAINS, NUM_POINTS, {"interior": 64}),
}
RECOVERIES = {
    "none": lambda: opx.NoRecovery(),
    "skip": lambda: opx.Skip(),
    "backtrack": lambda: opx.Backtrack(),
    "backtrack_clips": lambda: opx.Backtrack(clips=True, max_grad_norm=10.0),
}
WEIGHTINGS = {
    "ones": lambda: opx.Static(),
    "static": lambda: opx.Static({"boundary": 10.0}),
    "scheduled": lambda: Scheduled({"boundary": optax.linear_schedule(1.0, 10.0, 20)}),
    "grad_norm_balance": lambda: GradNormBalance(every=4),
    "annealing": lambda: LearningRateAnnealing("interior", every=4),
    "grad_norm": lambda: GradNorm(every=2),
    "ntk": lambda: NTK(max_points=3, every=8),
    "relobralo": lambda: ReLoBRaLo(lookback=0.5),
    "soft_adapt": lambda: SoftAdapt(normalized=True, loss_weighted=True, every=2),
    "causal": lambda: Causal(("interior",), 0, (-1.0, 1.0), num_chunks=4, eps=1e-3),
    "self_adaptive": lambda: SelfAdaptive(),
    "residual_attention": lambda: ResidualAttention(("interior",)),
    "augmented_lagrangian": lambda: AugmentedLagrangian(("boundary",), every=5),
    "product": lambda: Product(
        Causal(("interior",), 0, (-1.0, 1.0), num_chunks=4, eps=(1e-3, 1e-2)),
        GradNormBalance(every=4),
        opx.Static({"boundary": 2.0}),
    ),
}
OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-3),
    "sgd_schedule": lambda: optax.sgd(optax.cosine_decay_schedule(1e-3, 100)),
    "lbfgs": lambda: optax.lbfgs(memory_size=4),
    "ssbroyden": lambda: opx.ssbroyden(),
    "levenberg_marquardt": lambda: opx.levenberg_marquardt(),
    "nncg": lambda: opx.nncg(rank=3, every=2),
    "soap": lambda: opx.soap(1e-3, every=3),
    "phases": lambda: opx.phases((optax.adam(1e-3), 5), (opx.ssbroyden(), 5)),
}


def mlp(key, in_size=1, width=8, dtype=float):
    return eqx.nn.MLP(in_size, 1, width, 2, jnp.tanh, key=key, dtype=dtype)


def regression(rows=50, batch_size=16, **kwargs):
    """A recipe of the smallest supervised kind, and the model it starts from."""
    x = jnp.linspace(-1, 1, rows)[:, None]
    sampler = opx.Minibatch(x, jnp.sin(3 * x), batch_size)
    options = {"optim": optax.adam(1e-3), "steps": 10} | kwargs
    recipe = opx.Recipe(opx.Supervised(), sampler=sampler, **options)
    return recipe, mlp(jr.key(1))


def poisson(**kwargs):
    """A recipe for a PINN, and the model it starts from."""
    options = {"optim": optax.adam(1e-3), "sampler": SAMPLERS["uniform"](), "steps": 10}
    return opx.Recipe(Poisson(), **(options | kwargs)), mlp(jr.key(1))


def bits(tree):
    """The arrays of a tree as NumPy arrays, keys by their data."""

    def plain(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jr.key_data(x) if is_key else x)

    return [plain(x) for x in jtu.tree_leaves(eqx.filter(tree, eqx.is_array))]


def assert_same_bits(one, other):
    assert jtu.tree_structure(one) == jtu.tree_structure(other)
    for a, b in zip(bits(one), bits(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
