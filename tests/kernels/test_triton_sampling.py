"""Sampling kernels against torch in float64, and against the distribution they must draw from."""

from __future__ import annotations

import pytest
import torch

from kernels.triton_harness import DEVICES
from pagemill.ops.triton.sampling import SamplingRows, argmax, sample


def rows_of(
    device: str,
    uniform: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> SamplingRows:
    def full(value: float) -> torch.Tensor:
        return torch.full((len(uniform),), value, device=device)

    return SamplingRows(
        temperature=full(temperature),
        top_k=torch.full((len(uniform),), top_k, dtype=torch.int32, device=device),
        top_p=full(top_p),
        min_p=full(min_p),
        uniform=uniform.to(device),
    )


def kept_probs(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """One row's distribution, by sorting, in float64."""
    probs = (logits.double().cpu() / temperature).softmax(-1)
    probs = torch.where(probs >= min_p * probs.max(), probs, 0)
    if top_k:
        probs = torch.where(probs >= probs.topk(top_k).values[-1], probs, 0)
    probs = probs / probs.sum()
    ordered, order = probs.sort(descending=True)
    needed = ordered.cumsum(0) - ordered < top_p
    kept = torch.zeros_like(probs).scatter_(0, order, torch.where(needed, ordered, 0))
    return kept / kept.sum()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [5, 4096, 10_000])
def test_argmax_takes_the_first_of_equals(device: str, dtype: torch.dtype, width: int) -> None:
    logits = torch.randint(-3, 4, (6, width), device=device).to(dtype)
    expected = (logits == logits.max(-1, keepdim=True).values).int().argmax(-1)
    assert torch.equal(argmax(logits), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_zero_temperature_is_greedy_beside_sampled_rows(device: str) -> None:
    logits = torch.randn(2, 9000, device=device)
    rows = rows_of(device, torch.tensor([0.5, 0.5]))
    rows.temperature[0] = 0.0
    tokens = sample(logits, rows, truncate=True)
    assert tokens[0] == logits[0].argmax()


FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.5, "top_k": 1},
    {"temperature": 1.0, "top_k": 37},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.05},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.9, "top_k": 100, "top_p": 0.7, "min_p": 0.01},
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("filters", FILTERS)
def test_uniform_numbers_pick_by_inverse_transform(device: str, filters: dict) -> None:
    torch.manual_seed(3)
    width = 5000
    logits = 2 * torch.randn(1, width, device=device)
    uniform = torch.arange(12) / 12 + 0.01
    expected = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    probs = kept_probs(logits[0], **expected)
    rows = rows_of(device, uniform, **filters)
    tokens = sample(logits.expand(12, width), rows, truncate=len(filters) > 1).cpu()
    running = probs.cumsum(0)
    assert (probs[tokens] > 0).all()
    # The token's own step of the running sum holds the uniform number, up to float32's rounding.
    assert (running[tokens] > uniform - 1e-4).all()
    assert (running[tokens] - probs[tokens] < uniform + 1e-4).all()


@pytest.mark.parametrize("device", DEVICES)
def test_ties_at_the_threshold_are_all_kept(device: str) -> None:
    logits = torch.zeros(4, 64, device=device)
    logits[:, 10] = 1.0
    rows = rows_of(device, (torch.arange(4) + 0.5) / 4, top_k=2)
    assert len(set(sample(logits, rows, truncate=True).tolist())) == 4


@pytest.mark.parametrize("device", DEVICES)
def test_masked_tokens_are_never_drawn(device: str) -> None:
    logits = torch.full((8, 6000), float("-inf"), device=device)
    logits[:, [7, 4999]] = torch.tensor([0.0, 0.5], device=device)
    uniform = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999999])
    for truncate in (False, True):
        rows = rows_of(device, uniform, top_p=0.99 if truncate else 1.0)
        tokens = sample(logits, rows, truncate=truncate)
        assert set(tokens.tolist()) == {7, 4999}


@pytest.mark.parametrize("device", DEVICES)
def test_no_rows(device: str) -> None:
    logits = torch.zeros(0, 100, device=device)
    assert argmax(logits).shape == (0,)
    assert sample(logits, rows_of(device, torch.zeros(0)), truncate=True).shape == (0,)
