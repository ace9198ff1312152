from .base import (
    OperatorBenchmark as OperatorBenchmark,
    OperatorData as OperatorData,
    predict as predict,
    row_errors as row_errors,
)
from .burgers import burgers_data as burgers_data, energy_above as energy_above
from .cache import cache_folder as cache_folder
from .darcy import darcy_data as darcy_data
from .problems import burgers_operator as burgers_operator, darcy as darcy
