"""The choices of the command line, by name."""

import functools
from collections.abc import Callable
from typing import Any

import jax.random as jr

from .._misc import unknown_name
from .._optimizer.plans import planned_optimizer, PLANS
from .._recipe import Recipe
from .._recovery.backtrack import Backtrack
from .._sampler.base import AbstractSampler
from .._sampler.fixed import Fixed
from .._sampler.quasi_random import halton, latin_hypercube, QuasiRandom, sobol
from .._sampler.rad import RAD
from .._sampler.uniform import sample_each, Uniform
from .base import Benchmark
from .dissociation import DissociationBenchmark, h2_dissociation
from .operators.base import OperatorBenchmark
from .operators.problems import burgers_operator, darcy
from .problems import elliptic, evolution, flow, heat, inverse, many_dims, transport


_MINIBATCH, _MOLECULES = "minibatch", "molecules"

AnyBenchmark = Benchmark | OperatorBenchmark | DissociationBenchmark

# By name; each gives the benchmark with its points in a dtype.
BENCHMARKS: dict[str, Callable[[Any], Benchmark]] = {
    "advection": transport.advection,
    "allen-cahn": evolution.allen_cahn,
    "burgers": transport.burgers,
    "burgers-inverse": inverse.burgers_inverse,
    "diffusion": evolution.diffusion,
    "diffusion-reaction-inverse": inverse.diffusion_reaction_inverse,
    "heat": heat.heat,
    "helmholtz": elliptic.helmholtz,
    "kdv": transport.kdv,
    "kovasznay": flow.kovasznay,
    "poisson": elliptic.poisson,
    "poisson-10d": many_dims.poisson_10d,
    "poisson-disc": elliptic.poisson_disc,
    "poisson-l-shape": elliptic.poisson_l_shape,
    "taylor-green": flow.taylor_green,
    "two-body-100d": many_dims.two_body_100d,
    "wave": evolution.wave,
}

# Those that learn a map between functions.
OPERATORS: dict[str, Callable[[Any], OperatorBenchmark]] = {
    "burgers-operator": burgers_operator,
    "darcy": darcy,
}

# Those that learn a density functional.
FUNCTIONALS: dict[str, Callable[[Any], DissociationBenchmark]] = {
    "h2-dissociation": h2_dissociation,
}

SAMPLERS: dict[str, Callable[[Any, int], AbstractSampler]] = {
    "rad": lambda b, seed: RAD(b.domains, b.num_points, b.num_candidates),
    "uniform": lambda b, seed: Uniform(b.domains, b.num_points),
    "fixed": lambda b, seed: Fixed(
        sample_each(b.domains, b.num_points, jr.key(seed)),
    ),
    "sobol": lambda b, seed: _quasi_random(b, sobol, seed),
    "halton": lambda b, seed: _quasi_random(b, halton, seed),
    "latin-hypercube": lambda b, seed: _quasi_random(b, latin_hypercube, seed),
    _MINIBATCH: lambda b, seed: b.minibatch(),
    _MOLECULES: lambda b, seed: b.molecules(),
}


def _quasi_random(benchmark: Benchmark, sequence, seed: int) -> QuasiRandom:
    return QuasiRandom(
        benchmark.domains, benchmark.num_points, sequence=sequence, seed=seed
    )


# The table of all optimizers, under the name that goes with the others here.
OPTIMIZERS = PLANS


def make_benchmark(name: str, dtype: Any = None) -> Benchmark:
    """The benchmark of that name, its points in `dtype`."""
    if name not in BENCHMARKS:
        raise ValueError(unknown_name("problem", name, BENCHMARKS))
    return BENCHMARKS[name](dtype)


def find_benchmark(name: str, dtype: Any = None) -> AnyBenchmark:
    """What the command line calls by that name, its numbers in `dtype`."""
    known = BENCHMARKS | OPERATORS | FUNCTIONALS
    if name not in known:
        raise ValueError(unknown_name("problem", name, known))
    return known[name](dtype)


def default_ensemble(benchmark: AnyBenchmark) -> int:
    """How many members are trained unless it is said."""
    return benchmark.ensemble if isinstance(benchmark, DissociationBenchmark) else 1


def make_recipe(
    benchmark: AnyBenchmark,
    *,
    sampler: str,
    optimizer: str,
    steps: int,
    chunk: int,
    seed: int,
    single_precision: bool = False,
) -> Recipe:
    """The recipe for `steps` steps in chunks of `chunk`.

    **Arguments:**

    - `benchmark`: what to solve.
    - `sampler`: a name out of `SAMPLERS`.
    - `optimizer`: see [`planned_optimizer`][].
    - `steps`: how many the schedules are laid out for.
    - `chunk`: how many lie between two resamplings.
    - `seed`: of the points, where they are drawn once and for all.
    - `single_precision`: whether second-order methods may do with less than float64.
    """
    if sampler not in SAMPLERS:
        raise ValueError(unknown_name("sampler", sampler, SAMPLERS))
    if _only_sampler(benchmark) != (
        sampler if sampler in (_MINIBATCH, _MOLECULES) else None
    ):
        raise ValueError(
            f"`sampler` is {sampler!r}, which does not go with {benchmark.name!r}. Use "
            f"{_MINIBATCH!r} to learn an operator from pairs of functions, "
            f"{_MOLECULES!r} to learn a density functional, and one that places points "
            "to solve an equation."
        )
    points = SAMPLERS[sampler](benchmark, seed)
    plan = functools.partial(
        planned_optimizer, optimizer, steps, single_precision=single_precision
    )
    if isinstance(benchmark, OperatorBenchmark):
        optim = plan(benchmark.learning_rate)
        return Recipe(benchmark.problem(), optim, points, steps=chunk)
    # What second-order methods bring down to 1e-10 at some points may be 1e-4 at the
    # next: that is no explosion.
    recovery = Backtrack(max_rise=1e10)
    return Recipe(benchmark.problem, plan(), points, recovery, steps=chunk)


def _only_sampler(benchmark: AnyBenchmark) -> str | None:
    """That of a benchmark without points to place."""
    if isinstance(benchmark, OperatorBenchmark):
        return _MINIBATCH
    return _MOLECULES if isinstance(benchmark, DissociationBenchmark) else None
