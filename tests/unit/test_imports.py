"""What must stay light: these packages work without torch, so the HTTP side is up at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

TORCH_FREE = ("api", "checkpoint", "cli", "config", "frontend", "kvcache", "metrics", "scheduler")
NEEDS_TORCH = {
    f"pagemill.checkpoint.{name}"
    for name in ("weights", "groups", "gguf_groups", "read_ahead", "scaled")
}

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
skip = set(sys.argv[2].split(","))
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if module.name not in skip:
        importlib.import_module(module.name)
        for heavy in ("torch", "transformers"):
            if heavy in sys.modules:
                sys.exit(f"{module.name} imports {heavy}")
"""


@pytest.mark.parametrize("package", TORCH_FREE)
def test_package_needs_no_torch(package: str) -> None:
    command = [sys.executable, "-c", IMPORT_ALL, f"pagemill.{package}", ",".join(NEEDS_TORCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_pagemill_is_cheap() -> None:
    code = "import sys, pagemill; sys.exit('msgspec' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
