"""Matrices kept in groups of 32 equal the dequantised ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from pagemill.checkpoint.dequant import quant_format
from pagemill.checkpoint.gguf_groups import read_groups
from pagemill.checkpoint.groups import quantize_groups, stack
from unit.checkpoint.test_dequant import K_QUANTS, QUANTS, random_blocks

NO_GROUPS_OF_32 = {"Q2_K", "Q3_K", "Q6_K"}


@pytest.mark.parametrize("name", QUANTS + K_QUANTS)
def test_equal_the_dequantised_matrix(name: str) -> None:
    kind = quant_format(GGMLQuantizationType[name].value)
    rows, in_features = 5, 768
    raw = random_blocks(name, np.random.default_rng(0), rows * in_features // kind.block_size)
    found = read_groups(kind, raw, (rows, in_features))
    if name in NO_GROUPS_OF_32:
        assert found is None
        return
    assert found is not None
    assert found.shape == (rows, in_features)
    expected = torch.from_numpy(kind.dequantize(raw).reshape(rows, in_features))
    # Scales in two parts are rounded to float16 together.
    tolerance = 2**-10 * float(expected.abs().max()) if name in K_QUANTS else 1e-6
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)
    order = torch.tensor([4, 0, 3, 1, 2])
    assert torch.equal(found.rows(order).float(), found.float()[order])
    for other in (found.widened(), found.with_offsets(), found.widened().with_offsets()):
        torch.testing.assert_close(other.float(), found.float(), rtol=0, atol=tolerance)


def test_vectors_and_plain_types_are_left_alone() -> None:
    floats, quants = quant_format(0), quant_format(8)
    assert read_groups(floats, np.zeros(4 * 64 * 4, np.uint8), (4, 64)) is None
    assert read_groups(quants, np.zeros(2 * 34, np.uint8), (64,)) is None


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.5 / 127), (4, 0.5 / 15)])
def test_rounding_is_within_half_a_step(bits: int, bound: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 70)
    found = quantize_groups(weight, bits)
    assert (found.bits, found.shape) == (bits, (7, 70))
    groups = torch.nn.functional.pad(weight, (0, 26)).view(7, 3, 32)
    span = groups.abs().amax(2) if bits == 8 else groups.amax(2) - groups.amin(2)
    limit = (1.01 * bound * span + 1e-3).repeat_interleave(32, 1)[:, :70]
    assert ((found.float() - weight).abs() <= limit).all()
    assert torch.equal(stack([found, found]).float(), found.float().repeat(2, 1))


def test_rows_of_zeros_stay_zero() -> None:
    assert not quantize_groups(torch.zeros(3, 64), 8).float().any()
    assert not quantize_groups(torch.zeros(3, 64), 4).float().any()
