"""`TritonOps` as a whole: its choices among kernels, and equality with the specification."""

from __future__ import annotations

import pytest
import torch

from kernels.triton_harness import DEVICES, assert_near
from pagemill.ops.base import HeadShape
from pagemill.ops.fused import FusedOps
from pagemill.ops.reference import ReferenceOps
from pagemill.ops.triton import ops as dispatch
from pagemill.ops.triton.ops import TritonOps

REFERENCE = ReferenceOps()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 16, 17])
@pytest.mark.parametrize("inner", [64, 4100])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.float16, 4e-3)])
def test_linear_for_any_number_of_tokens(
    device: str, tokens: int, inner: int, dtype: torch.dtype, near: float
) -> None:
    x = torch.randn(tokens, inner, device=device, dtype=dtype)
    weight = torch.randn(40, inner, device=device, dtype=dtype)
    bias = torch.randn(40, device=device, dtype=dtype)
    for given in (None, bias):
        assert_near(TritonOps().linear(x, weight, given), REFERENCE.linear(x, weight, given), near)


def test_float32_of_few_tokens_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(dispatch, "batch_linear", lambda *args: calls.append(args[0].dtype))
    for dtype in (torch.float32, torch.float16):
        TritonOps().linear(torch.zeros(2, 64, dtype=dtype), torch.zeros(40, 64, dtype=dtype), None)
    assert calls == [torch.float16]


@pytest.mark.parametrize("device", DEVICES)
def test_linear_of_awkward_layouts(device: str) -> None:
    weight = torch.randn(64, 40, device=device).t()
    x = torch.randn(3, 64, device=device)
    columns = torch.randn(64, 3, device=device).t()
    stacked = torch.randn(2, 3, 64, device=device)
    for given in (x, columns, stacked):
        assert_near(TritonOps().linear(given, weight, None), given @ weight.t(), 1e-5)
    assert_near(TritonOps().linear(columns, weight.contiguous(), None), columns @ weight.t(), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_every_op_equals_the_specification(device: str) -> None:
    ops = TritonOps()
    x, weight = torch.randn(6, 128, device=device), torch.rand(128, device=device)
    assert_near(ops.rms_norm(x, weight, 1e-6), REFERENCE.rms_norm(x, weight, 1e-6), 1e-5)
    streams = [torch.ones(6, 128, device=device) for _ in range(2)]
    expected = REFERENCE.add_rms_norm(x, streams[0], weight, 1e-6)
    assert_near(ops.add_rms_norm(x, streams[1], weight, 1e-6), expected, 1e-5)
    assert torch.equal(*streams)
    assert_near(ops.silu_mul(x), REFERENCE.silu_mul(x), 1e-5)
    assert_near(ops.gelu_tanh_mul(x), REFERENCE.gelu_tanh_mul(x), 1e-5)
    assert_near(ops.soft_cap(x, 3.0), REFERENCE.soft_cap(x, 3.0), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_rope_equals_the_specification(device: str) -> None:
    shape = HeadShape(4, 2, 32)
    qkv = torch.randn(5, shape.q_size + 2 * shape.kv_size, device=device)
    positions = torch.tensor([4, 0, 1, 2, 9], device=device)
    slots = torch.tensor([0, -1, 5, 17, 3], device=device)
    cos_sin = torch.randn(16, 32, device=device)
    norms = [torch.rand(32, device=device) for _ in "qk"]
    results = []
    for ops in (REFERENCE, TritonOps()):
        caches = [torch.zeros(2, 2, 16, 32, device=device) for _ in "kv"]
        q = ops.qk_norm_rope_cache(qkv, positions, slots, cos_sin, shape, *caches, *norms, 1e-6)
        results.append(torch.cat([q.flatten(), *(cache.flatten() for cache in caches)]))
    assert_near(results[1], results[0], 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["silu", "gelu_tanh"])
def test_fused_ops_equal_the_ops_they_replace(device: str, name: str) -> None:
    ops = TritonOps()
    assert isinstance(ops, FusedOps)
    activate = REFERENCE.silu_mul if name == "silu" else REFERENCE.gelu_tanh_mul
    gate_up, bias = torch.randn(80, 96, device=device), torch.randn(80, device=device)
    down = torch.randn(96, 40, device=device)
    norms = [torch.rand(96, device=device) for _ in range(2)]
    for num_tokens in (1, 3):
        x = torch.randn(num_tokens, 96, device=device)
        stream = ops.begin_stream(x.clone(), norms[0])
        normed = REFERENCE.rms_norm(x, norms[0], 1e-6)
        expected = REFERENCE.linear(normed, gate_up, bias)
        assert_near(ops.norm_linear(stream, 1e-6, gate_up, bias), expected, 1e-5)
        hidden = ops.norm_gate_up(stream, 1e-6, gate_up, name)
        assert_near(hidden, activate(REFERENCE.linear(normed, gate_up, None)), 1e-5)
        ops.linear_add(hidden, down, None, stream, norms[1])
        assert_near(stream.values, x + REFERENCE.linear(hidden, down, None), 1e-5)
        normed = REFERENCE.rms_norm(stream.values, norms[1], 1e-6)
        y = ops.norm_linear(stream, 1e-6, gate_up, None)
        assert_near(y, REFERENCE.linear(normed, gate_up, None), 1e-5)


def test_fused_ops_are_for_few_tokens() -> None:
    ops = TritonOps()
    assert ops.fuses(1, 96, torch.float32) and not ops.fuses(1, 5000, torch.bfloat16)
    assert ops.fuses(16, 8192, torch.bfloat16) and not ops.fuses(17, 1024, torch.bfloat16)
    assert not ops.fuses(2, 96, torch.float32) and not ops.fuses(2, 96, torch.float16)


@pytest.mark.parametrize("device", DEVICES)
def test_argmax(device: str) -> None:
    logits = torch.randn(3, 500, device=device)
    assert torch.equal(TritonOps().argmax(logits), logits.argmax(-1))
