"""Float8 products against the reference, which rounds activations in the same way."""

from __future__ import annotations

import pytest
import torch

from kernels.triton_harness import DEVICES, HALF_TYPES, assert_near
from pagemill.ops.fp8 import FP8_MAX, Fp8Ops
from pagemill.ops.reference import ReferenceOps
from pagemill.ops.triton import fp8_linear as kernels
from pagemill.ops.triton.ops import TritonOps
from pagemill.quant.fp8 import quantize as quantize_weight


def inputs(num_tokens: int, width: int, device: str) -> torch.Tensor:
    """Numbers whose rounding is exact (the interpreter's is wrong), of another size in each row."""
    generator = torch.Generator().manual_seed(2)
    x = (60 * torch.randn(num_tokens, width, generator=generator)).clamp(-FP8_MAX, FP8_MAX)
    x = x.to(torch.float8_e4m3fn).float()
    x[:, ::32] = FP8_MAX
    x *= 2.0 ** torch.arange(-3, 4).repeat(num_tokens)[:num_tokens, None]
    return x.to(device)


def weights(out_features: int, width: int, groups: int, device: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(out_features, width, generator=generator) * torch.rand(out_features, 1)
    values, scale = quantize_weight(plain, groups)
    return values.to(device), scale.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [1, 16, 40])
@pytest.mark.parametrize(("out_features", "width", "groups"), [(96, 64, 1), (70, 300, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(
    device: str, num_tokens: int, out_features: int, width: int, groups: int, bias: bool
) -> None:
    assert isinstance(TritonOps(), Fp8Ops)
    weight, scale = weights(out_features, width, groups, device)
    x = inputs(num_tokens, width, device).to(HALF_TYPES[-1])
    added = torch.randn(out_features, device=device).to(x.dtype) if bias else None
    expected = ReferenceOps().fp8_linear(x.float(), weight, scale, added)
    actual = TritonOps().fp8_linear(x, weight, scale, added)
    assert actual.dtype == x.dtype
    for row in range(num_tokens):
        assert_near(actual[row], expected[row], 6e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_linear_of_no_tokens_and_of_strided_ones(device: str) -> None:
    weight, scale = weights(32, 64, 1, device)
    x = torch.randn(6, 128, device=device).to(HALF_TYPES[-1])
    assert TritonOps().fp8_linear(x[:0, :64], weight, scale, None).shape == (0, 32)
    expected = TritonOps().fp8_linear(x[:, :64].contiguous(), weight, scale, None)
    assert torch.equal(TritonOps().fp8_linear(x[:, :64], weight, scale, None), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("width", "groups"), [(100, 1), (300, 3)])
def test_activations_are_rounded_by_their_greatest(device: str, width: int, groups: int) -> None:
    x = inputs(3, width, device)
    x[1] = 0
    values, scale = kernels.quantize(x, groups)
    expected, factors = quantize_weight(x, groups)
    assert torch.equal(scale, factors)
    assert torch.equal(values.float(), expected.float())
    assert values.float().abs().max() == FP8_MAX and not values[1].float().any()


@pytest.mark.gpu
@pytest.mark.parametrize(("num_tokens", "groups"), [(1, 1), (16, 3), (200, 1), (200, 3)])
def test_linear_of_any_numbers_on_the_card(num_tokens: int, groups: int) -> None:
    weight, scale = weights(384, 384, groups, "cuda")
    x = torch.randn(num_tokens, 384, device="cuda", dtype=torch.bfloat16)
    expected = ReferenceOps().fp8_linear(x.float(), weight, scale, None)
    assert_near(TritonOps().fp8_linear(x, weight, scale, None), expected, 1e-2)
