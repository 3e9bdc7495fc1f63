"""Sampling kernels against torch in float64, and against the distribution they must draw from."""

from __future__ import annotations

import pytest
import torch

from kernels.triton_harness import DEVICES
from pagemill.ops.sampling import Filters, SamplingOps, SamplingRows, SlotSampling
from pagemill.ops.triton.ops import TritonOps
from pagemill.ops.triton.sampling import argmax
from pagemill.params import SamplingParams
from pagemill.sampling.random import uniform as reference_uniform
from unit.sampling.harness import Slots, admission

OPS = TritonOps()
NO_FILTERS = Filters()


def filters_of(settings: dict) -> Filters:
    return Filters(*(name in settings for name in ("top_k", "top_p", "min_p")))


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
    tokens = OPS.sample(logits, rows, Filters(top_k=True, top_p=True, min_p=True))
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
    tokens = OPS.sample(logits.expand(12, width), rows, filters_of(filters)).cpu()
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
    assert (
        len(set(OPS.sample(logits, rows, Filters(top_k=True, top_p=True, min_p=True)).tolist()))
        == 4
    )


@pytest.mark.parametrize("device", DEVICES)
def test_masked_tokens_are_never_drawn(device: str) -> None:
    logits = torch.full((8, 6000), float("-inf"), device=device)
    logits[:, [7, 4999]] = torch.tensor([0.0, 0.5], device=device)
    uniform = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999999])
    for truncate in (False, True):
        rows = rows_of(device, uniform, top_p=0.99 if truncate else 1.0)
        tokens = OPS.sample(logits, rows, Filters(top_p=truncate))
        assert set(tokens.tolist()) == {7, 4999}


@pytest.mark.parametrize("device", DEVICES)
def test_no_rows(device: str) -> None:
    logits = torch.zeros(0, 100, device=device)
    assert argmax(logits).shape == (0,)
    rows = rows_of(device, torch.zeros(0))
    assert OPS.sample(logits, rows, Filters(top_k=True)).shape == (0,)
    assert OPS.sample(logits, rows, NO_FILTERS).shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
def test_filters_of_one_row_do_not_touch_the_others(device: str) -> None:
    """Rows with their own filters, in one launch and several programs a row."""
    torch.manual_seed(4)
    settings = [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {"top_k": 40, "top_p": 0.6}]
    logits = 3 * torch.randn(len(settings), 20_000, device=device)
    number = torch.full((len(settings),), 0.37)
    parts = [rows_of(device, number[:1], **one) for one in settings]
    together = SamplingRows(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("temperature", "top_k", "top_p", "min_p", "uniform")
        )
    )
    tokens = OPS.sample(logits, together, Filters(top_k=True, top_p=True, min_p=True))
    for row, (part, one) in enumerate(zip(parts, settings, strict=True)):
        alone = OPS.sample(logits[row : row + 1], part, filters_of(one))
        assert tokens[row] == alone[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_searching_for_all_filters_changes_no_token(
    device: str, dtype: torch.dtype, seed: int
) -> None:
    """A graph searches for all of them, the sampler for those that some row of the step uses."""
    chance = torch.Generator().manual_seed(seed)

    def pick(*values: float) -> torch.Tensor:
        return torch.tensor(values)[torch.randint(len(values), (12,), generator=chance)].to(device)

    logits = (4 * torch.randn(12, 9000, generator=chance)).to(device, dtype)
    rows = SamplingRows(
        temperature=pick(0.0, 0.2, 0.6, 1.0, 1.7),
        top_k=pick(0, 9000, 1, 2, 20, 500),
        top_p=pick(1.0, 0.05, 0.8, 0.95),
        min_p=pick(0.0, 0.02, 0.5),
        uniform=torch.rand(12, generator=chance).to(device),
    )
    together = OPS.sample(logits, rows, Filters(True, True, True)).tolist()
    for row, token in enumerate(together):
        fields = ("temperature", "top_k", "top_p", "min_p", "uniform")
        alone = SamplingRows(*(getattr(rows, name)[row : row + 1] for name in fields))
        used = Filters(
            top_k=0 < float(alone.top_k) < 9000,
            top_p=float(alone.top_p) < 1,
            min_p=float(alone.min_p) > 0,
        )
        assert OPS.sample(logits[row : row + 1], alone, used).tolist() == [token]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_looked_up_by_slot(device: str) -> None:
    assert isinstance(OPS, SamplingOps)
    columns = torch.rand(9, 7, device=device)
    seeds = torch.randint(-(2**62), 2**62, (9,), device=device)
    state = SlotSampling(*(columns[:, i] for i in (0, 2, 1, 3)), seeds)
    slots = torch.tensor([8, 0, 3], device=device)
    index = torch.tensor([1, 70_000, 5], device=device)
    rows = OPS.sampling_rows(slots, index, state)
    for value, column in ((rows.temperature, 0), (rows.top_k, 2), (rows.top_p, 1), (rows.min_p, 3)):
        assert torch.equal(value, columns[slots, column])
    assert torch.equal(rows.uniform, reference_uniform(seeds[slots], index).float())


REQUESTS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, seed=1),
    SamplingParams(top_k=5, seed=2),
    SamplingParams(top_p=0.8, min_p=0.05, seed=3),
    SamplingParams(top_k=50, top_p=0.95, repetition_penalty=1.2, seed=4),
    SamplingParams(temperature=0.0, logit_bias={7: 100.0}),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4, 5] * 4, [0, 5], [0, 0], [1, 0]])
def test_the_sampler_draws_with_kernels_what_it_draws_with_torch(
    device: str, chosen: list[int]
) -> None:
    logits = 3 * torch.randn(len(chosen), 9000, generator=torch.Generator().manual_seed(5))
    index = range(1, len(chosen) + 1)
    drawn = []
    for ops in (None, OPS):
        slots = Slots(9000, device, ops)
        slots.admit(*(admission(i, p, seed=p.seed or 0) for i, p in enumerate(REQUESTS)))
        drawn.append(slots.draw(logits, chosen, index))
    assert drawn[0] == drawn[1]
