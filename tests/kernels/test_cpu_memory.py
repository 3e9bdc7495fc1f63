"""Memory of packed weights: aligned, of zeros, and no two tensors in one place."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pagemill.ops.cpu._native", reason="built without a compiler")

from pagemill.ops.cpu.memory import WeightMemory


def test_parts_are_apart_aligned_and_zero() -> None:
    memory = WeightMemory()
    sizes = [1, 64, 1000, 40 << 20, 30 << 20, 100 << 20, 5]  # across and beyond one mapping
    parts = [memory.zeros(size) for size in sizes]
    for number, (part, size) in enumerate(zip(parts, sizes, strict=True), start=1):
        assert part.shape == (size,) and part.dtype == torch.uint8
        assert part.data_ptr() % 64 == 0
        assert part[0] == part[-1] == 0
        part[0] = part[-1] = number
    for number, part in enumerate(parts, start=1):
        assert part[0] == part[-1] == number


def test_parts_outlive_what_gave_them() -> None:
    part = WeightMemory().zeros(100)
    part.fill_(7)
    assert part.sum() == 700
