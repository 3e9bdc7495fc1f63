"""Linear kernels for few tokens, alone and with their fused neighbours, against float64 torch."""

from __future__ import annotations

import pytest
import torch

from kernels.triton_harness import DEVICES, HALF_TYPES, TOLERANCE, assert_near
from pagemill.ops.triton.batch_linear import (
    BatchConfig,
    batch_linear,
    batch_linear_add,
    begin_stream,
    norm_batch_linear,
)
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
@pytest.mark.parametrize(
    ("tokens", "out", "inner"), [(2, 64, 256), (16, 70, 576), (5, 33, 1000), (70, 64, 256)]
)
def test_batch_linear(
    device: str, dtype: torch.dtype, splits: int, tokens: int, out: int, inner: int
) -> None:
    x, weight, bias = make(tokens, out, inner, device, dtype)
    counters = torch.zeros(16, dtype=torch.int32, device=device)
    config = BatchConfig(32, 32, 64, splits, 4, 3)
    for given in (None, bias):
        y = batch_linear(x, weight, given, counters, config)
        assert_near(y, linear(x, weight, given), TOLERANCE[dtype])
    assert not counters.any()


@pytest.mark.parametrize("device", DEVICES)
def test_batch_linear_chooses_its_own_shape(device: str) -> None:
    counters = torch.zeros(64, dtype=torch.int32, device=device)
    for tokens in (3, 20, 100):
        x, weight, _ = make(tokens, 64, 512, device, torch.float32)
        y = batch_linear(x, weight, None, counters)
        assert_near(y, linear(x, weight, None), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_batch_linear_takes_rows_inside_a_wider_tensor(device: str) -> None:
    wide, weight, _ = make(4, 40, 128, device, torch.float32)
    x, weight = wide[:, 32:96], weight[:, 32:96].contiguous()
    counters = torch.zeros(8, dtype=torch.int32, device=device)
    assert_near(batch_linear(x, weight, None, counters), linear(x, weight, None), 1e-5)


def rms_norm(x: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * norm.double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("tokens", "splits"), [(3, 1), (3, 2), (40, 1), (40, 2)])
def test_the_stream_passes_norms_on(
    device: str, dtype: torch.dtype, activation: str, tokens: int, splits: int
) -> None:
    x, weight, bias = make(tokens, 70, 96, device, dtype)
    config = BatchConfig(16, 16, 32, splits, 4, 3)
    counters = torch.zeros(64, dtype=torch.int32, device=device)
    norms = [torch.rand(96, device=device) + 0.5 for _ in range(2)]
    stream = begin_stream(x.clone(), norms[0])
    normed = rms_norm(x, norms[0])
    y = norm_batch_linear(stream, 1e-6, weight, bias, None, counters, config)
    assert_near(y, linear(normed, weight, bias), TOLERANCE[dtype])
    gate, up = linear(normed, weight, None).chunk(2, -1)
    gelu = torch.nn.functional.gelu(gate, approximate="tanh")
    gate = torch.nn.functional.silu(gate) if activation == "silu" else gelu
    hidden = norm_batch_linear(stream, 1e-6, weight, None, activation, counters, config)
    assert_near(hidden, gate * up, TOLERANCE[dtype])
    _, down, down_bias = make(1, 96, 35, device, dtype)
    batch_linear_add(hidden, down, down_bias, stream, norms[1], counters, config)
    assert_near(stream.values, x.double() + linear(hidden, down, down_bias), TOLERANCE[dtype])
    y = norm_batch_linear(stream, 1e-6, weight, None, None, counters, config)
    assert_near(y, linear(rms_norm(stream.values, norms[1]), weight, None), TOLERANCE[dtype])
    assert not counters.any()
