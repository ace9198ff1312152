"""The documented door to recovery."""

from ..nnx.recovery import ErrorRecoveryManager as ErrorRecoveryManager


__all__ = [
    "ErrorRecoveryManager",
]


def __dir__():
    return __all__
