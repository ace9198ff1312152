"""A file imports from its own layer or a lower one, and only at its top."""

import ast
import pathlib
import subprocess
import sys

import pytest

import opifex


LAYERS = (
    "_custom_types _misc _pack _reading _scan _devices",
    "_results _state",
    "derivatives geometry",
    "_problem",
    "_sampler _weighting _recovery _optimizer _transfer _precision",
    "_objective _least_squares _trust",
    "_step _stochastic _recipe",
    "_best _callback _checkpoint _interrupts _layout _lock _manifest _processes "
    "_restore _validation",
    "_ensemble _memory _fit _cascade",
    "neural zoo quantum",
    "cli __main__",
    "nnx core training optimization",
)
OPTIONAL = {"flax", "folx", "matplotlib", "orbax", "tensorboardX"}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}
ROOT = pathlib.Path(opifex.__file__).parent
FILES = {
    path.relative_to(ROOT).with_suffix("").parts: path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


def _imported(node: ast.AST, here: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The places in opifex that an import reaches for."""
    if isinstance(node, ast.Import):
        paths = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = ["opifex", *here[: -node.level]] if node.level else []
        base += node.module.split(".") if node.module else []
        whole = len(base) == 1  # `from . import a`: it is `a` that is meant
        paths = [[*base, alias.name] for alias in node.names] if whole else [base]
    else:
        return []
    return [tuple(path[1:]) or ("",) for path in paths if path[0] == "opifex"]


def _needs_optional_package(path: tuple[str, ...]) -> bool:
    nodes = ast.parse(FILES[path].read_text()).body
    imports = [
        ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    return any(line.split()[1].split(".")[0] in OPTIONAL for line in imports)


@pytest.mark.parametrize("here", FILES, ids="/".join)
def test_layers(here):
    assert here[0] in RANK, f"{here[0]} has no layer: give it one"
    tree = ast.parse(FILES[here].read_text())
    for node in ast.walk(tree):
        for top, *_ in _imported(node, here):
            assert top in RANK, f"{here} imports {top!r}, which has no layer"
            assert RANK[top] <= RANK[here[0]], f"{here} imports {top}"
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    for function in (n for n in ast.walk(tree) if isinstance(n, functions)):
        for path in (path for n in ast.walk(function) for path in _imported(n, here)):
            assert _needs_optional_package(path), f"{here} imports {path} in a function"


@pytest.mark.parametrize(
    ("source", "paths"),
    [
        ("from . import base", ["_a"]),
        ("from .. import _b, _c", ["_b", "_c"]),
        ("from .x import y", ["_a.x"]),
        ("from .._b.c import d", ["_b.c"]),
        ("import opifex", [""]),
        ("import opifex._b.c as d, jax", ["_b.c"]),
        ("from opifex import _b", ["_b"]),
        ("from opifex._b.c import d", ["_b.c"]),
        ("import jax; from jax import numpy", []),
    ],
)
def test_imports_are_seen(source, paths):
    found = [_imported(node, ("_a", "x")) for node in ast.walk(ast.parse(source))]
    assert [".".join(path) for path in sum(found, [])] == paths


def test_import_is_light():
    code = f"import sys, opifex; print(*{OPTIONAL} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    assert out.stdout.split() == []
