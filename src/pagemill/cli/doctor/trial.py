"""Does torch really import here, and see the device? Asked of a process of its own.

It starts first and is read last, so that its seconds pass while the rest is looked at; and what
crashes there does not take the doctor along.
"""

from __future__ import annotations

import subprocess
import sys
import time

import msgspec

from pagemill.cli.doctor.facts import Trial

TIMEOUT = 120.0
_CODE = """
import json, time
start = time.perf_counter()
import torch
found = {"cuda_available": torch.cuda.is_available(), "threads": torch.get_num_threads()}
try:
    from pagemill.ops.cpu import _native
    found["native_isa"] = _native.isa()
except ImportError:
    found["native_isa"] = None
found["seconds"] = time.perf_counter() - start
print("trial:" + json.dumps(found))
"""


class TrialRun:
    """A process that imports what the engine imports."""

    def __init__(self, code: str = _CODE) -> None:
        self._deadline = time.monotonic() + TIMEOUT
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> Trial:
        """What it found, or why it failed: the last line that it printed."""
        try:
            out, err = self._process.communicate(timeout=self._deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return Trial(error=f"importing torch took more than {TIMEOUT:g} s")
        for line in out.splitlines():
            if line.startswith("trial:"):
                return msgspec.json.decode(line.removeprefix("trial:"), type=Trial)
        lines = err.strip().splitlines()
        code = self._process.returncode
        return Trial(error=lines[-1] if lines else f"the process ended with code {code}")
