"""What the Triton tests share: they run on the card where there is one, else interpreted."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before any import

pytest.importorskip("triton")

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]
# The interpreter's matrix product reads bfloat16 as integers.
HALF_TYPES = [torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Relative error in the Frobenius norm; NaN never passes."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm().clamp_min(1e-30)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.1e}"
