"""Sizes that keep the code readable: no file over 500 lines, no function of 60 or more."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
SOURCES = sorted(
    path
    for top in ("src", "tests", "benchmarks", "examples")
    for path in (ROOT / top).rglob("*.py")
)
NATIVE = sorted(path for pattern in ("*.cpp", "*.h") for path in (ROOT / "src").rglob(pattern))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def first_line(node: ast.FunctionDef | ast.AsyncFunctionDef, path: Path) -> int:
    """Where counting begins: after the parameters for GPU kernels, which take dozens."""
    return node.body[0].lineno if "triton" in path.parts else node.lineno


def test_sources_are_found() -> None:
    assert ROOT / "src/pagemill/config/resolve.py" in SOURCES


@pytest.mark.parametrize("path", [*SOURCES, *NATIVE], ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    long = {
        node.name: length
        for node in functions(path)
        if (length := (node.end_lineno or 0) - first_line(node, path) + 1) >= MAX_FUNCTION_LINES
    }
    assert not long
