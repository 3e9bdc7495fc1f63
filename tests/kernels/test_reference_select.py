"""Kernels and attention backends by name."""

from __future__ import annotations

import pytest

from pagemill.attention.select import select_attention
from pagemill.errors import ConfigError
from pagemill.ops.select import select_ops


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_reference_kernels_exist_everywhere(device: str) -> None:
    assert select_ops(device, "reference").name == "reference"
    assert select_attention(device, "torch").name == "torch"


def test_the_cpu_has_defaults() -> None:
    assert select_ops("cpu").name
    assert select_attention("cpu").name


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown ops 'fast'.*reference"):
        select_ops("cpu", "fast")
    with pytest.raises(ConfigError, match=r"unknown attention backend 'fast'.*torch"):
        select_attention("cpu", "fast")
