"""A file imports from its own layer or a lower one, and only at its top."""

import ast
import pathlib
import subprocess
import sys

import pytest

import opifex


LAYERS = (
    "_custom_types _misc _pack _scan",
    "_results _state",
    "derivatives geometry",
    "_problem",
    "_sampler _weighting _recovery _optimizer _transfer _precision",
    "_objective",
    "_step _recipe",
    "_callback _checkpoint _interrupts _validation _ensemble _fit _cascade",
    "neural zoo quantum",
    "cli __main__",
    "nnx core training optimization",
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}
ROOT = pathlib.Path(opifex.__file__).parent
FILES = {
    path.relative_to(ROOT).with_suffix("").parts: path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


def _imported(node: ast.AST, here: tuple[str, ...]) -> list[str]:
    """The top-level names of opifex that an import reaches for."""
    if isinstance(node, ast.ImportFrom):
        module = node.module.split(".") if node.module else []
        if node.level == 0:
            package, path = module[:1], module[1:]
        else:
            package, path = ["opifex"], [*here[: -node.level], *module]
        names = path[:1] or [alias.name for alias in node.names]
        return names if package == ["opifex"] else []
    if isinstance(node, ast.Import):
        parts = [alias.name.split(".") for alias in node.names]
        return [(path + [""])[1] for path in parts if path[0] == "opifex"]
    return []


@pytest.mark.parametrize("here", FILES, ids="/".join)
def test_layers(here):
    assert here[0] in RANK, f"{here[0]} has no layer: give it one"
    for node in ast.walk(ast.parse(FILES[here].read_text())):
        for name in _imported(node, here):
            assert name in RANK, f"{here} imports {name!r}, which has no layer"
            assert RANK[name] <= RANK[here[0]], f"{here} imports {name}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = [name for n in ast.walk(node) for name in _imported(n, here)]
            assert not inner, f"{here} imports {inner} inside a function"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from . import base", ["_a"]),
        ("from .. import _b, _c", ["_b", "_c"]),
        ("from .x import y", ["_a"]),
        ("from .._b.c import d", ["_b"]),
        ("import opifex", [""]),
        ("import opifex._b.c as d, jax", ["_b"]),
        ("from opifex import _b", ["_b"]),
        ("from opifex._b.c import d", ["_b"]),
        ("import jax; from jax import numpy", []),
    ],
)
def test_imports_are_seen(source, names):
    found = [_imported(node, ("_a", "x")) for node in ast.walk(ast.parse(source))]
    assert sum(found, []) == names


def test_import_is_light():
    heavy = "{'flax', 'orbax', 'matplotlib', 'tensorboardX'}"
    code = f"import sys, opifex; print(*{heavy} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    assert out.stdout.split() == []
