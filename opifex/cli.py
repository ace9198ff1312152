"""`opifex train burgers`, `opifex list`, `opifex plot DIR`."""

import argparse
import dataclasses
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ._fit import TrainingError
from ._interrupts import Interrupts
from ._misc import unknown_name
from ._processes import end, is_first, is_peer_lost, join_processes, leave, wait_for_all
from ._reading import read_json
from .zoo import (
    BENCHMARKS,
    default_ensemble,
    find_benchmark,
    FUNCTIONALS,
    OPERATORS,
    OPTIMIZERS,
    SAMPLERS,
)
from .zoo.run import Config, run


EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: launchers try again
EXIT_CTRL_C = 130  # 128 + SIGINT, as shells have it: whoever pressed it wants an end


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    **Returns:** 0 if done, 1 if training failed, 2 for bad arguments, 75 if
    SIGTERM or the time budget ended the run and 130 if SIGINT (Ctrl-C) did. After both,
    `--resume` will continue it.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except TrainingError as error:
        print(f"opifex: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        if is_peer_lost(error):
            leave(error)
        print(f"opifex: {error}", file=sys.stderr)
        if jax.process_count() > 1:
            end(EXIT_USAGE)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("opifex", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="solve a problem")
    train.set_defaults(command=_train)
    train.add_argument("problem", help="a name that `opifex list` prints")
    train.add_argument("--steps", type=int, help="how many steps of the optimizer")
    train.add_argument("--seed", type=int, help="of every random number (0)")
    train.add_argument("--ensemble", type=int, help="how many members, by seed")
    train.add_argument("--sampler", help="one of: " + ", ".join(SAMPLERS))
    train.add_argument("--optimizer", help="one of: " + ", ".join(OPTIMIZERS))
    train.add_argument("--dtype", help="float32 or float64")
    train.add_argument("--out", type=Path, metavar="DIR", help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on where it stopped")
    train.add_argument("--time-budget", type=float, default=math.inf, metavar="S")
    train.add_argument(
        "--distributed",
        action="store_true",
        help="share out over all devices of all processes, as the cluster says or:",
    )
    train.add_argument("--coordinator", metavar="HOST:PORT", help="the first process")
    train.add_argument("--num-processes", type=int, metavar="N")
    train.add_argument("--process-id", type=int, metavar="I", help="this one, from 0")
    train.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    train.add_argument("--quiet", action="store_true", help="print nothing")
    show = commands.add_parser("list", help="what there is to solve")
    show.set_defaults(command=_list)
    plot = commands.add_parser("plot", help="draw the figures of a run again")
    plot.set_defaults(command=_plot)
    plot.add_argument("folder", type=Path, metavar="DIR")
    return parser


def _train(options: argparse.Namespace) -> int:
    join = (options.coordinator, options.num_processes, options.process_id)
    if options.distributed:
        join_processes(*join)
    elif join != (None, None, None):
        raise ValueError("`--distributed` is missing, without which others are idle.")
    folder = _folder(options)
    config = _config(options, folder)
    wait_for_all("the choice of a folder, before there is a new one")
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    with Interrupts() as interrupts:
        figures = run(
            config,
            folder,
            resume=options.resume,
            quiet=options.quiet,
            time_budget=options.time_budget,
            devices=jax.devices() if options.distributed else (),
        )
    if is_first():
        _tell(options, figures, folder)
    if figures["result"] == "successful":
        return 0
    if figures["result"] == "interrupted" and interrupts.received == signal.SIGINT:
        return EXIT_CTRL_C
    return EXIT_RESUMABLE if figures["resumable"] else EXIT_FAILED


def _tell(options: argparse.Namespace, figures: dict[str, Any], folder: Path) -> None:
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    _draw(folder)
    if not options.quiet:
        _report(figures, folder)


def _list(options: argparse.Namespace) -> int:
    del options
    for name in sorted(BENCHMARKS | OPERATORS | FUNCTIONALS):
        benchmark = find_benchmark(name)
        print(f"{name:28}{benchmark.title}")
    return 0


def _plot(options: argparse.Namespace) -> int:
    for path in _figures(options.folder):
        print(path)
    return 0


def _folder(options: argparse.Namespace) -> Path:
    """The folder that was asked for; else the last of this problem, or a new one."""
    if options.out is not None:
        if not options.resume and (options.out / "run.json").exists():
            raise ValueError(
                f"`--out` holds a run already: {str(options.out)!r}. Add --resume to "
                "continue it, or name another folder."
            )
        return options.out
    runs = Path("runs")
    last = max(
        (
            int(p.name.rpartition("-")[2])
            for p in runs.glob(f"{options.problem}-[0-9]*")
        ),
        default=0,
    )
    if options.resume and not last:
        raise ValueError(f"`--resume`: there is no run of {options.problem} in runs/.")
    return runs / f"{options.problem}-{last if options.resume else last + 1}"


def _config(options: argparse.Namespace, folder: Path) -> Config:
    """What was asked for, over what the run had before, over what suits the problem."""
    benchmark = find_benchmark(options.problem)
    values: dict[str, Any] = {
        "problem": options.problem,
        "steps": benchmark.steps,
        "seed": 0,
        "ensemble": default_ensemble(benchmark),
        "sampler": benchmark.sampler,
        "optimizer": benchmark.optimizer,
        "dtype": benchmark.dtype,
    }
    if options.resume:
        values |= _config_of(folder)
    for field in dataclasses.fields(Config):
        given = getattr(options, field.name)
        if given is not None:
            values[field.name] = given
    if values["dtype"] not in ("float32", "float64"):
        known = ("float32", "float64")
        raise ValueError(unknown_name("--dtype", values["dtype"], known))
    return Config(**values)


def _config_of(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`."""
    document = read_json(folder / "run.json")
    config = document.get("config") if isinstance(document, dict) else None
    names = {field.name for field in dataclasses.fields(Config)}
    if not isinstance(config, dict) or not config.keys() <= names:
        raise ValueError(
            f"{str(folder / 'run.json')!r} holds no configuration of a run. Repair it, "
            "or begin anew in another folder."
        )
    return config


def _draw(folder: Path) -> list[Path]:
    try:
        return _figures(folder)
    except ModuleNotFoundError as error:
        print(f"opifex: no figures: {error}", file=sys.stderr)
        return []


def _figures(folder: Path) -> list[Path]:
    try:
        from .zoo.plot import plot_run
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"figures need the package {error.name!r}, which is not installed. Install "
            "it with: pip install 'opifex[plot]'"
        ) from error
    return plot_run(folder)


def _report(figures: dict[str, Any], folder: Path) -> None:
    floor = "; at its floor" if figures["at_reference_floor"] else ""
    print(
        f"{figures['problem']}: {figures['result']} after {figures['steps']} steps, "
        f"{figures['n_params']} parameters, {figures['dtype']}\n"
        f"relative L2 error {figures['rel_l2']:.2e} "
        f"(of the reference itself: {figures['reference_error']:.0e}{floor})"
    )
    if "rel_l2_fine" in figures:
        print(f"on a grid twice as fine {figures['rel_l2_fine']:.2e}")
    if "max_error_mha" in figures:
        print(
            f"largest error {figures['max_error_mha']:.2f} mHa, mean "
            f"{figures['mean_error_mha']:.2f} (chemical accuracy: 1.6; "
            f"LDA: {figures['lda_max_error_mha']:.1f}; "
            f"of the reference: {figures['reference_error_mha']:.3f})"
        )
    for name, found in figures.get("coefficients", {}).items():
        print(
            f"{name} = {found['value']:.6g} +- {found['error_bar']:.2g} "
            f"(truth: {found['truth']:.6g})"
        )
    if "trust" in figures:  # which warns by itself
        ratio = figures["trust"]["residual_ratio"]
        print(f"residual at fresh points {ratio:.2g} times that at the trained ones")
    print(
        f"{figures['cpu_s']:.0f} s of CPU time, {figures['wall_s']:.0f} s\n"
        f"in {folder}: {', '.join(p.name for p in sorted(folder.iterdir()))}"
    )
    if figures["resumable"]:
        print(f"to go on: opifex train {figures['problem']} --resume --out {folder}")
