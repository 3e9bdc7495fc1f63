"""Names of compiled kernels on disk do not depend on what a process has launched before."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import importlib, pkgutil
from triton.runtime.jit import JITFunction
import pagemill.ops.triton as package

functions = {}
for module in pkgutil.iter_modules(package.__path__):
    names = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
    found = {f for f in names.values() if isinstance(f, JITFunction)}
    functions |= {(f.fn.__module__, f.fn.__name__): f for f in found}
kernels = {name: f for name, f in functions.items() if name[1].endswith("_kernel")}
helpers = {name: f for name, f in functions.items() if name not in kernels}
assert len(kernels) > 20 and len(helpers) > 20
for name, function in helpers.items():
    assert function.hash, f"{name} is not hashed when it is defined"
    # What it uses was there: hashed anew, it has the same name.
    assert JITFunction(function.fn).cache_key == function.cache_key, name
first = {name: f.cache_key for name, f in kernels.items()}
again = {name: JITFunction(f.fn).cache_key for name, f in reversed(kernels.items())}
assert first == again, [name for name in first if first[name] != again[name]]
"""


def test_kernels_have_the_same_name_in_any_order() -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
