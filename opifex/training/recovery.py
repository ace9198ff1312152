"""The documented door to recovery."""

from ..nnx.recovery import ErrorRecoveryManager as ErrorRecoveryManager
