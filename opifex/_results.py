import equinox as eqx
from jaxtyping import Array, Bool


class RESULTS(eqx.Enumeration):
    """What became of a step, and every way in which training can end."""

    successful = ""
    nonfinite_loss = "The loss was not finite; the step was not taken."
    nonfinite_gradient = "The gradient was not finite; the step was not taken."
    spiked = "The gradient norm was far above its recent range; the step was not taken."
    exploded = (
        "The loss exceeded the limits of `recovery`; the run went back to its anchor."
    )
    diverged = (
        "The loss or the gradient became NaN or infinite and `recovery` is "
        "`NoRecovery()`, so the parameters are lost. Use `Backtrack()`, or lower the "
        "learning rate."
    )
    attempts_exhausted = (
        "Training did not recover: the attempts that `recovery` allows were used up. "
        "Lower the learning rate, look at the first fault in `recovery_state.faults`, "
        "or raise `max_attempts`."
    )
    plateaued = (
        "The watched loss stopped improving for `patience` validations; the best state "
        "was handed back. Raise `patience` to go on."
    )
    time_budget_spent = (
        "`time_budget` was used up; the best state was handed back. Resume from the "
        "checkpoint to go on."
    )
    interrupted = (
        "The run was interrupted (SIGINT or SIGTERM); the best state was handed back. "
        "Resume from the checkpoint to go on."
    )
    stopped = "A callback asked to stop; the best state was handed back."


# In the order of the values that stand for them.
RESULT_NAMES: tuple[str, ...] = tuple(RESULTS._name_to_item)


def is_fatal(result: RESULTS) -> Bool[Array, "..."]:
    """Whether `result` says that no further step can help."""
    return (result == RESULTS.diverged) | (result == RESULTS.attempts_exhausted)
