"""Functions that kernels call."""

from __future__ import annotations

from typing import Any

import triton


def helper(function: Any) -> Any:
    """`triton.jit` for a function that kernels call; define what it uses before it.

    Triton names a compiled kernel on disk by a hash, into which the constants that a called
    function uses go only if that function has been hashed before. Without hashing it here, a
    kernel's name would depend on which kernels the process met before it: compiled ahead by
    another process, or in another start, it would not be found.
    """
    compiled = triton.jit(function)
    getattr(compiled, "cache_key", None)  # computes and keeps it; the interpreter has none
    return compiled
