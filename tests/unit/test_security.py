"""What docs/security.md promises of the code as a whole, and that the tests it names exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGE = (ROOT / "docs/security.md").read_text()
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

# Whatever turns bytes or text into code or objects, or opens what a text names.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("yaml", "load"), ("os", "system"), ("torch", "save")}
FETCHING = {"requests", "httpx", "aiohttp", "urllib3", "urllib.request", "http.client"}
# Packages that a request passes through: none of them can fetch anything.
REQUEST_PATH = ("api", "frontend", "engine", "scheduler", "kvcache", "grammar", "runner")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def offences(source: str) -> list[str]:
    """Everything in a module that could run what it was given."""
    tree = ast.parse(source)
    found = [name for name in imports(tree) if name.partition(".")[0] in FORBIDDEN_MODULES]
    for call in calls(tree):
        match call.func:
            case ast.Name(id=name) if name in FORBIDDEN_CALLS:
                found.append(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (
                owner,
                name,
            ) in FORBIDDEN_ATTRIBUTES:
                found.append(f"{owner}.{name}")
        found += ["shell=True" for k in call.keywords if k.arg == "shell"]
        found += [k.arg for k in call.keywords if k.arg in ("trust_remote_code", "allow_pickle")]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_nothing_runs_what_it_was_given(path: Path) -> None:
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from torch import load\ntorch.load(x)",
        "eval(x)",
        "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_offences_are_found(code: str) -> None:
    assert offences(code)


@pytest.mark.parametrize("package", REQUEST_PATH)
def test_nothing_on_a_requests_way_can_fetch(package: str) -> None:
    for path in sorted((ROOT / "src/pagemill" / package).rglob("*.py")):
        assert not FETCHING & set(imports(ast.parse(path.read_text()))), path


def test_the_tests_that_the_page_names_exist() -> None:
    named = REFERENCE.findall(PAGE)
    assert len(named) > 25
    for file, name in named:
        text = (ROOT / file).read_text()
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file}::{name}"
