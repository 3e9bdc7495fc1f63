"""Memory of packed weights: aligned, of zeros, and no two tensors in one place."""

from __future__ import annotations

import errno
import mmap

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


def test_a_used_up_mapping_is_let_go() -> None:
    memory = WeightMemory()
    part = memory.zeros(64 << 20)
    assert memory._mapping.untyped_storage().data_ptr() != part.untyped_storage().data_ptr()


def test_systems_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    assert WeightMemory().zeros(100).sum() == 0
