"""Norms, activations, and the fused rope of the Triton backend against plain torch."""

from __future__ import annotations

import pytest
import torch

from kernels.triton_harness import DEVICES, TOLERANCE, assert_near
from pagemill.ops.base import HeadShape
from pagemill.ops.triton import activation, norm, rope

DTYPES = [torch.float32, torch.bfloat16]


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 64), (5, 576), (9, 1024), (2, 5000), (0, 64), (700, 32)])
def test_rms_norm(device: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    x = torch.randn(size, device=device, dtype=dtype)
    weight = torch.rand(size[1], device=device) + 0.5
    y = norm.rms_norm(x, weight, 1e-6)
    assert y.dtype == dtype
    assert_near(y, _rms(x, weight, 1e-6), TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_rms_norm_of_rows_inside_a_wider_tensor(device: str) -> None:
    wide = torch.randn(4, 200, device=device)
    weight = torch.rand(96, device=device)
    assert_near(
        norm.rms_norm(wide[:, 8:104], weight, 1e-5), _rms(wide[:, 8:104], weight, 1e-5), 1e-6
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_updates_the_residual(device: str, dtype: torch.dtype) -> None:
    x = torch.randn(7, 160, device=device, dtype=dtype)
    residual = torch.randn(7, 160, device=device, dtype=dtype)
    weight = torch.rand(160, device=device) + 0.5
    expected_residual = x + residual
    y = norm.add_rms_norm(x, residual, weight, 1e-6)
    assert_near(residual, expected_residual, TOLERANCE[dtype])  # the interpreter truncates
    assert_near(y, _rms(expected_residual, weight, 1e-6), TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 1500])
def test_gated_activations(device: str, dtype: torch.dtype, width: int) -> None:
    x = 3 * torch.randn(3, 2 * width, device=device, dtype=dtype)
    gate, up = x.double().chunk(2, -1)
    silu = torch.nn.functional.silu(gate) * up
    gelu = torch.nn.functional.gelu(gate, approximate="tanh") * up
    assert_near(activation.silu_mul(x), silu, TOLERANCE[dtype])
    assert_near(activation.gelu_tanh_mul(x), gelu, TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_soft_cap_keeps_extremes_finite(device: str) -> None:
    x = torch.tensor([[-1e4, -3.0, 0.0, 7.0, 1e4]], device=device)
    assert_near(activation.soft_cap(x, 30.0), 30 * torch.tanh(x.double() / 30), 1e-6)


def _rope(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos_sin.double().chunk(2, -1)
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _head_norm(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    return x if weight is None else _rms(x, weight, 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    "shape", [HeadShape(4, 2, 64), HeadShape(7, 1, 80), HeadShape(2, 2, 16), HeadShape(9, 3, 128)]
)
def test_qk_norm_rope_cache(
    device: str, dtype: torch.dtype, normed: bool, shape: HeadShape
) -> None:
    size = 4
    qkv = torch.randn(5, shape.q_size + 2 * shape.kv_size, device=device, dtype=dtype)
    positions = torch.tensor([0, 9, 3, 1, 30], device=device)
    slots = torch.tensor([13, 2, -1, 7, 0], device=device)
    cos_sin = torch.randn(32, shape.head_dim, device=device)
    caches = torch.full((2, 4, shape.num_kv_heads, size, shape.head_dim), 9.0, device=device)
    caches = caches.to(dtype)
    weights = [torch.rand(shape.head_dim, device=device) + 0.5 for _ in "qk"]
    q_norm, k_norm = weights if normed else (None, None)
    q = rope.qk_norm_rope_cache(
        qkv, positions, slots, cos_sin, shape, caches[0], caches[1], q_norm, k_norm, 1e-6
    )
    parts = qkv.double().split([shape.q_size, shape.kv_size, shape.kv_size], -1)
    want_q, want_k, v = (part.reshape(5, -1, shape.head_dim) for part in parts)
    want_q = _rope(_head_norm(want_q, q_norm), cos_sin[positions])
    want_k = _rope(_head_norm(want_k, k_norm), cos_sin[positions])
    assert_near(q, want_q, TOLERANCE[dtype])
    want = torch.full_like(caches, 9.0, dtype=torch.float64)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            want[0, slot // size, :, slot % size] = want_k[token]
            want[1, slot // size, :, slot % size] = v[token]
    assert_near(caches, want, TOLERANCE[dtype])
