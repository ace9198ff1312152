from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from ._callback.base import AbstractCallback as AbstractCallback
from ._callback.collect import Collect as Collect, join as join
from ._callback.history import History as History
from ._callback.progress import ProgressBar as ProgressBar
from ._cascade.levels import cascade as cascade, Level as Level
from ._cascade.resize import prolongate as prolongate, restrict as restrict
from ._devices import local as local, replicated as replicated, shared_out as shared_out
from ._ensemble import Ensemble as Ensemble, ensemble as ensemble
from ._fit import fit as fit, TrainingError as TrainingError
from ._optimizer.bfgs import bfgs as bfgs, ssbfgs as ssbfgs
from ._optimizer.lbfgs import lbfgs as lbfgs
from ._optimizer.levenberg_marquardt import levenberg_marquardt as levenberg_marquardt
from ._optimizer.muon import muon as muon
from ._optimizer.natural_gradient import engd as engd
from ._optimizer.nncg import nncg as nncg
from ._optimizer.phases import phases as phases
from ._optimizer.residuals import (
    AbstractSquares as AbstractSquares,
    SumOfSquares as SumOfSquares,
)
from ._optimizer.soap import scale_by_soap as scale_by_soap, soap as soap
from ._optimizer.ssbroyden import ssbroyden as ssbroyden
from ._precision import Precision as Precision
from ._problem.base import (
    AbstractProblem as AbstractProblem,
    AbstractResidualProblem as AbstractResidualProblem,
    Aux as Aux,
    Weighted as Weighted,
)
from ._problem.coefficients import (
    AbstractCoefficient as AbstractCoefficient,
    Bounded as Bounded,
    Free as Free,
    Inverse as Inverse,
    Positive as Positive,
    separately as separately,
)
from ._problem.conditions import (
    AbstractCondition as AbstractCondition,
    Dirichlet as Dirichlet,
    Initial as Initial,
    Measured as Measured,
    Neumann as Neumann,
    Periodic as Periodic,
    Robin as Robin,
)
from ._problem.conservation import (
    Conserved as Conserved,
    energy as energy,
    mass as mass,
    momentum as momentum,
    symmetry as symmetry,
)
from ._problem.exact import Constrained as Constrained
from ._problem.forces import WithForces as WithForces
from ._problem.operator import (
    coarsen as coarsen,
    Normalised as Normalised,
    operator_problem as operator_problem,
    relative_h1 as relative_h1,
    unit_gaussian as unit_gaussian,
    UnitGaussian as UnitGaussian,
)
from ._problem.pde import PDE as PDE
from ._problem.physics_informed import PhysicsInformed as PhysicsInformed
from ._problem.supervised import (
    batched as batched,
    huber as huber,
    mae as mae,
    mse as mse,
    Pairs as Pairs,
    pointwise as pointwise,
    relative_l2 as relative_l2,
    Supervised as Supervised,
)
from ._problem.uncertainty import coefficient_errors as coefficient_errors
from ._processes import join_processes as join_processes
from ._recipe import Recipe as Recipe
from ._recovery.backtrack import Backtrack as Backtrack
from ._recovery.base import (
    AbstractRecovery as AbstractRecovery,
    anchor as anchor,
    fault_report as fault_report,
    Faults as Faults,
    recover as recover,
)
from ._recovery.none import NoRecovery as NoRecovery
from ._recovery.remedies import Remedy as Remedy
from ._recovery.skip import Skip as Skip
from ._results import is_fatal as is_fatal, RESULTS as RESULTS
from ._sampler.base import AbstractSampler as AbstractSampler, resample as resample
from ._sampler.data_parallel import DataParallel as DataParallel
from ._sampler.fixed import Fixed as Fixed
from ._sampler.importance import Importance as Importance
from ._sampler.minibatch import Minibatch as Minibatch
from ._sampler.quasi_random import (
    halton as halton,
    latin_hypercube as latin_hypercube,
    QuasiRandom as QuasiRandom,
    sobol as sobol,
)
from ._sampler.r3 import R3 as R3
from ._sampler.rad import RAD as RAD
from ._sampler.rard import RARD as RARD
from ._sampler.rarg import RARG as RARG
from ._sampler.uniform import Uniform as Uniform
from ._scan import filter_scan as filter_scan
from ._state import (
    Progress as Progress,
    StepInfo as StepInfo,
    TrainingState as TrainingState,
)
from ._step import init as init, train_step as train_step, trainable as trainable
from ._transfer.base import (
    AbstractTransfer as AbstractTransfer,
    prolongate_model as prolongate_model,
    restrict_model as restrict_model,
)
from ._transfer.chain import Chain as Chain
from ._transfer.deepen import Deepen as Deepen
from ._transfer.modes import PadModes as PadModes
from ._transfer.widen import Widen as Widen
from ._trust import SUSPICIOUS_RATIO as SUSPICIOUS_RATIO, trust as trust
from ._validation import (
    HeldOut as HeldOut,
    observe as observe,
    training_loss as training_loss,
    Validation as Validation,
)
from ._weighting.annealing import LearningRateAnnealing as LearningRateAnnealing
from ._weighting.augmented_lagrangian import AugmentedLagrangian as AugmentedLagrangian
from ._weighting.base import (
    AbstractWeighting as AbstractWeighting,
    Needs as Needs,
    Observed as Observed,
    Pointwise as Pointwise,
)
from ._weighting.causal import Causal as Causal
from ._weighting.grad_norm import GradNorm as GradNorm
from ._weighting.grad_norm_balance import GradNormBalance as GradNormBalance
from ._weighting.multipliers import Multipliers as Multipliers
from ._weighting.ntk import NTK as NTK
from ._weighting.product import Product as Product
from ._weighting.relobralo import ReLoBRaLo as ReLoBRaLo
from ._weighting.residual_attention import ResidualAttention as ResidualAttention
from ._weighting.scheduled import Scheduled as Scheduled
from ._weighting.self_adaptive import SelfAdaptive as SelfAdaptive
from ._weighting.soft_adapt import SoftAdapt as SoftAdapt
from ._weighting.static import Static as Static
from .derivatives import (
    AbstractDerivatives as AbstractDerivatives,
    bilaplacian as bilaplacian,
    Field as Field,
    Forward as Forward,
    ForwardReverse as ForwardReverse,
    laplacian as laplacian,
    Nested as Nested,
    Residual as Residual,
    residual as residual,
    STDE as STDE,
    Taylor as Taylor,
)
from .geometry import (
    AbstractDomain as AbstractDomain,
    Ball as Ball,
    Box as Box,
    Difference as Difference,
    Disc as Disc,
    Ellipsoid as Ellipsoid,
    Intersection as Intersection,
    Interval as Interval,
    Polygon as Polygon,
    TimeProduct as TimeProduct,
    TriangleMesh as TriangleMesh,
    Union as Union,
)


if TYPE_CHECKING:
    from ._callback.checkpoint import Checkpoint as Checkpoint
    from ._callback.tensorboard import TensorBoard as TensorBoard
    from ._manifest import (
        CheckpointError as CheckpointError,
        ConfigurationMismatch as ConfigurationMismatch,
        CorruptCheckpoint as CorruptCheckpoint,
        TemplateMismatch as TemplateMismatch,
    )
    from ._restore import best_step as best_step, restore as restore


__version__ = version("opifex")

# Names that need an optional package: the file that has them, and the extra to install.
_OPTIONAL = {
    "Checkpoint": ("._callback.checkpoint", "checkpoint"),
    "CheckpointError": ("._checkpoint", "checkpoint"),
    "ConfigurationMismatch": ("._checkpoint", "checkpoint"),
    "CorruptCheckpoint": ("._checkpoint", "checkpoint"),
    "restore": ("._checkpoint", "checkpoint"),
    "best_step": ("._checkpoint", "checkpoint"),
    "TemplateMismatch": ("._checkpoint", "checkpoint"),
    "TensorBoard": ("._callback.tensorboard", "tensorboard"),
}


def __getattr__(name: str):
    if name not in _OPTIONAL:
        raise AttributeError(f"module 'opifex' has no attribute {name!r}")
    file, extra = _OPTIONAL[name]
    try:
        return getattr(import_module(file, __name__), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"`opifex.{name}` needs the package {error.name!r}, which is not "
            f"installed. Install it with: pip install 'opifex[{extra}]'"
        ) from error
