"""Ratios of CPU times, measured side by side."""

import statistics
import time
from collections.abc import Callable


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def median_ratios(
    runs: dict[str, Callable[[], object]],
    base: str,
    rounds: int,
    steps: dict[str, int] | None = None,
) -> dict[str, float]:
    """The median over rounds of each run's CPU time over that of `base` in its round.

    The runs take turns, in an order that alternates, so that what else the machine does
    hits all alike. Each is called once before, to compile. Where `steps` says how many
    each run takes, times are compared by the step.
    """
    steps = steps or dict.fromkeys(runs, 1)
    for run in runs.values():
        run()
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        order = list(runs)[:: 1 if i % 2 else -1]
        times = {name: cpu_seconds(runs[name]) / steps[name] for name in order}
        for name, seconds in times.items():
            ratios[name].append(seconds / times[base])
    return {name: statistics.median(values) for name, values in ratios.items()}
