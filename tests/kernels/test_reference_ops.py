"""ReferenceOps against arithmetic written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pagemill.ops import reference
from pagemill.ops.base import HeadShape
from pagemill.ops.reference import ReferenceOps

OPS = ReferenceOps()
SHAPE = HeadShape(num_heads=4, num_kv_heads=2, head_dim=8)
TYPES = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def close(ours: Tensor, expected: Tensor) -> bool:
    tolerance = TYPES[ours.dtype]
    return torch.allclose(ours.double(), expected.double(), rtol=tolerance, atol=tolerance)


def norm64(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def rotate64(x: Tensor, angles: Tensor) -> Tensor:
    """x [T, heads, D] as complex numbers (first half + i second half), angles [T, D / 2]."""
    first, second = x.double().chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.exp(1j * angles.double())[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.parametrize("dtype", TYPES)
def test_rms_norm(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 64).to(dtype), torch.rand(64)
    ours = OPS.rms_norm(x, weight, 1e-3)
    assert ours.dtype == dtype and close(ours, norm64(x, weight, 1e-3))


@pytest.mark.parametrize("dtype", TYPES)
def test_add_rms_norm_updates_the_residual(dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(5, 64).to(dtype), torch.randn(5, 64).to(dtype), torch.rand(64)
    total = x + residual
    ours = OPS.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total) and close(ours, norm64(total, weight, 1e-5))


@pytest.mark.parametrize("dtype", TYPES)
def test_gates(dtype: torch.dtype) -> None:
    x = torch.randn(5, 48).to(dtype)
    before = x.clone()
    gate, up = x.double().chunk(2, dim=-1)
    assert close(OPS.silu_mul(x), gate / (1 + torch.exp(-gate)) * up)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    assert close(OPS.gelu_tanh_mul(x), 0.5 * gate * (1 + torch.tanh(inner)) * up)
    assert torch.equal(x, before)


def test_linear_and_soft_cap() -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    assert close(OPS.linear(x, weight, bias), x.double() @ weight.double().T + bias)
    assert close(OPS.soft_cap(x * 40, 30.0), 30 * torch.tanh(x.double() * 40 / 30))


class Rotation:
    """A qkv of seven tokens, its table, and a cache of five blocks of four."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.qkv = torch.randn(7, SHAPE.q_size + 2 * SHAPE.kv_size).to(dtype)
        self.positions = torch.tensor([3, 0, 9, 9, 1, 2, 30])
        self.slots = torch.tensor([19, 2, 7, 0, 11, 5, 8])
        self.angles = torch.randn(40, SHAPE.head_dim // 2)
        self.table = torch.cat((self.angles.cos(), self.angles.sin()), dim=1)
        self.k = torch.randn(5, SHAPE.num_kv_heads, 4, SHAPE.head_dim).to(dtype)
        self.v = torch.randn_like(self.k)

    def run(self, norms: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)) -> Tensor:
        return OPS.qk_norm_rope_cache(
            self.qkv,
            self.positions,
            self.slots,
            self.table,
            SHAPE,
            self.k,
            self.v,
            *norms,
            1e-6,
        )

    def heads(self) -> tuple[Tensor, ...]:
        return self.qkv.view(7, -1, SHAPE.head_dim).split((4, 2, 2), dim=1)

    def written(self, cache: Tensor) -> Tensor:
        return torch.stack([cache[s // 4, :, s % 4] for s in self.slots.tolist()])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_and_cache(dtype: torch.dtype, normed: bool) -> None:
    case = Rotation(dtype)
    q, k, v = case.heads()
    norms = (torch.rand(8), torch.rand(8))
    if normed:
        q, k = norm64(q, norms[0], 1e-6), norm64(k, norms[1], 1e-6)
    angles = case.angles[case.positions]
    ours = case.run(norms if normed else (None, None))
    assert ours.is_contiguous() and close(ours, rotate64(q, angles))
    assert close(case.written(case.k), rotate64(k, angles))
    assert torch.equal(case.written(case.v), v)


def test_other_slots_are_left_alone() -> None:
    case = Rotation()
    before = case.k.clone()
    case.run()
    used = torch.zeros(5, 4, dtype=torch.bool)
    used.view(-1)[case.slots] = True
    assert torch.equal(case.k.transpose(1, 2)[~used], before.transpose(1, 2)[~used])


@pytest.mark.parametrize("skipped", [[0], [3, 6], [6], list(range(7))])
def test_negative_slots_are_not_written(skipped: list[int]) -> None:
    case, full = Rotation(), Rotation()
    full.__dict__.update({name: value.clone() for name, value in vars(case).items()})
    before_k, before_v = case.k.clone(), case.v.clone()
    case.slots[skipped] = -1
    q = case.run()
    assert torch.equal(q, full.run())
    for ours, before, written in ((case.k, before_k, full.k), (case.v, before_v, full.v)):
        expected = before.clone()
        for slot in case.slots[case.slots >= 0].tolist():
            expected[slot // 4, :, slot % 4] = written[slot // 4, :, slot % 4]
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "slots", [[3, 5, 0], [-1, 5, -1, 2], [-1, 0], [0, -1], [-1, -1, -1], [4]], ids=str
)
def test_writes_without_asking_the_device(slots: list[int]) -> None:
    """What CUDA uses, run on the CPU: every write to one slot carries the same token."""
    rows, targets, keep = reference._unconditional_writes(torch.tensor(slots))
    written: dict[int, set[int]] = {}
    for row, target, kept in zip(rows.tolist(), targets.tolist(), keep.flatten(), strict=True):
        if kept:
            written.setdefault(target, set()).add(row)
    assert written == {slot: {i} for i, slot in enumerate(slots) if slot >= 0}
    assert int(targets.min()) >= 0
