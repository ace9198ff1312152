from .base import Benchmark as Benchmark, Reference as Reference
from .recipe import (
    BENCHMARKS as BENCHMARKS,
    default_ensemble as default_ensemble,
    find_benchmark as find_benchmark,
    FUNCTIONALS as FUNCTIONALS,
    make_benchmark as make_benchmark,
    make_recipe as make_recipe,
    OPERATORS as OPERATORS,
    OPTIMIZERS as OPTIMIZERS,
    SAMPLERS as SAMPLERS,
)
from .references import cole_hopf as cole_hopf
