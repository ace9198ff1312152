from typing import Any, TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key as _Key, PyTree


Model = TypeVar("Model")
Batch = TypeVar("Batch")
SamplerState = TypeVar("SamplerState")
WeightingState = TypeVar("WeightingState")
RecoveryState = TypeVar("RecoveryState")
CallbackState = TypeVar("CallbackState")

Key: TypeAlias = _Key[Array, ""]
Scalar: TypeAlias = Float[Array, ""]
Count: TypeAlias = Int[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
Terms: TypeAlias = dict[str, Scalar]
Points: TypeAlias = Float[Array, "points dim"]
OptState: TypeAlias = PyTree[Any]

# Of JAX, or of NumPy for what is on the host, with the methods that both have.
if TYPE_CHECKING:
    AnyArray: TypeAlias = Array
else:
    AnyArray = Array | np.ndarray | np.generic
