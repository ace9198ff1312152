"""How accurately the problems of the zoo are solved, as `opifex train NAME` does it.

    python benchmarks/zoo.py [--names burgers kdv ...] [--seed 0] [--json FILE]

Every problem is trained in a process of its own, with its defaults, one after the
other; a table in Markdown is printed. `CPU s` is the CPU time of that process, which
includes compilation and the reference. With `--out DIR` the runs are kept, and those
that are there already are not repeated.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from opifex.zoo import BENCHMARKS


_COLUMNS = (
    "problem",
    "relative L2 error",
    "of the reference",
    "at its floor",
    "steps",
    "parameters",
    "CPU s",
    "optimizer",
    "sampler",
    "dtype",
)


def solve(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The document of a run, see `run.json`; trains unless it is there."""
    document = folder / "run.json"
    if not document.exists():
        command = [sys.executable, "-m", "opifex", "train", name, "--quiet"]
        options = ["--seed", str(seed), "--out", str(folder)]
        subprocess.run([*command, *options], check=True)
    return json.loads(document.read_text())


def row(document: dict[str, Any]) -> str:
    config, figures = document["config"], document["figures"]
    cells = (
        config["problem"],
        f"{figures['rel_l2']:.1e}",
        f"{figures['reference_error']:.0e}",
        "yes" if figures["at_reference_floor"] else "no",
        figures["steps"],
        figures["n_params"],
        f"{figures['cpu_s']:.0f}",
        config["optimizer"],
        config["sampler"],
        config["dtype"],
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def coefficients(document: dict[str, Any]) -> list[str]:
    """What an inverse problem found, a line each."""
    problem = document["config"]["problem"]
    found = document["figures"].get("coefficients", {})
    return [
        f"{problem}: {name} = {c['value']:.6g} +- {c['error_bar']:.2g}, "
        f"truth {c['truth']:.6g}"
        for name, c in found.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=sorted(BENCHMARKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to keep the runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| " + " | ".join(_COLUMNS) + " |")
    print("|" + "---|" * len(_COLUMNS), flush=True)
    documents = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            folder = (options.out or Path(scratch)) / f"{name}-seed{options.seed}"
            documents[name] = solve(name, options.seed, folder)
            print(row(documents[name]), flush=True)
    for document in documents.values():
        for line in coefficients(document):
            print(line)
    if options.json:
        figures = {name: document["figures"] for name, document in documents.items()}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
