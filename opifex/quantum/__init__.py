"""Kohn-Sham in one dimension, differentiable throughout."""

from .exact import Exact as Exact, solve_exactly as solve_exactly
from .functionals import (
    AbstractFunctional as AbstractFunctional,
    LDA as LDA,
    NeuralFunctional as NeuralFunctional,
)
from .grid import Grid as Grid
from .interaction import (
    AbstractInteraction as AbstractInteraction,
    Exponential as Exponential,
    SoftCoulomb as SoftCoulomb,
)
from .kohn_sham import KohnSham as KohnSham
from .mixing import AbstractMixing as AbstractMixing, DIIS as DIIS, Linear as Linear
from .molecule import Molecule as Molecule
from .orbitals import fill as fill, Filling as Filling
from .problem import (
    FitFunctional as FitFunctional,
    LossWeights as LossWeights,
    Molecules as Molecules,
)
from .scf import SCF as SCF, Solution as Solution, solve as solve
