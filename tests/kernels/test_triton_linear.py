"""Linear kernels for few tokens, alone and with their fused neighbours, against float64 torch."""

from __future__ import annotations

import pytest
import torch

from kernels.triton_harness import DEVICES, HALF_TYPES, TOLERANCE, assert_near
from pagemill.ops.triton.skinny_linear import SkinnyConfig, skinny_linear
from pagemill.ops.triton.vector_linear import VectorConfig, norm_vector_linear, vector_linear

DTYPES = [torch.float32, *HALF_TYPES]


def make(
    tokens: int, out: int, inner: int, device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(tokens, inner, device=device, dtype=dtype)
    weight = torch.randn(out, inner, device=device, dtype=dtype) / inner**0.5
    return x, weight, torch.randn(out, device=device, dtype=dtype)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("out", "inner"), [(64, 128), (50, 96), (33, 576), (7, 4100), (5, 8192)])
def test_vector_linear(device: str, dtype: torch.dtype, biased: bool, out: int, inner: int) -> None:
    x, weight, bias = make(1, out, inner, device, dtype)
    given = bias if biased else None
    assert_near(vector_linear(x, weight, given), linear(x, weight, given), TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_a_program_may_own_many_tiles(device: str) -> None:
    x, weight, _ = make(1, 700, 64, device, torch.float32)
    few = VectorConfig(block_n=2, num_warps=4, programs_per_sm=1)
    assert_near(vector_linear(x, weight, config=few), linear(x, weight, None), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [96, 5000])
def test_vector_linear_adds_in_place(device: str, dtype: torch.dtype, inner: int) -> None:
    x, weight, bias = make(1, 30, inner, device, dtype)
    residual = torch.randn(1, 30, device=device, dtype=dtype)
    expected = residual.double() + linear(x, weight, bias)
    assert vector_linear(x, weight, bias, add_to=residual) is residual
    assert_near(residual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
def test_norm_vector_linear(device: str, dtype: torch.dtype, activation: str | None) -> None:
    x, weight, bias = make(1, 72, 160, device, dtype)
    norm = torch.rand(160, device=device) + 0.5
    used_bias = bias if activation is None else None
    out = norm_vector_linear(x, norm, 1e-6, weight, used_bias, activation)
    x = x.double()
    hidden = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * norm.double()
    expected = linear(hidden, weight, used_bias)
    if activation:
        gate, up = expected.chunk(2, -1)
        silu = torch.nn.functional.silu(gate)
        gelu = torch.nn.functional.gelu(gate, approximate="tanh")
        expected = (silu if activation == "silu" else gelu) * up
    assert_near(out, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("tokens", "out", "inner"), [(2, 64, 256), (16, 70, 576), (5, 33, 1000)])
def test_skinny_linear(
    device: str, dtype: torch.dtype, splits: int, tokens: int, out: int, inner: int
) -> None:
    x, weight, bias = make(tokens, out, inner, device, dtype)
    counters = torch.zeros(8, dtype=torch.int32, device=device)
    config = SkinnyConfig(32, 64, splits, 4, 3)
    for given in (None, bias):
        y = skinny_linear(x, weight, given, counters, config)
        assert_near(y, linear(x, weight, given), TOLERANCE[dtype])
    assert not counters.any()


@pytest.mark.parametrize("device", DEVICES)
def test_skinny_linear_chooses_its_own_shape(device: str) -> None:
    x, weight, _ = make(3, 64, 1024, device, torch.float32)
    counters = torch.zeros(8, dtype=torch.int32, device=device)
    assert_near(skinny_linear(x, weight, None, counters), linear(x, weight, None), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_skinny_linear_takes_rows_inside_a_wider_tensor(device: str) -> None:
    wide, weight, _ = make(4, 40, 128, device, torch.float32)
    x, weight = wide[:, 32:96], weight[:, 32:96].contiguous()
    counters = torch.zeros(8, dtype=torch.int32, device=device)
    assert_near(skinny_linear(x, weight, None, counters), linear(x, weight, None), 1e-5)
