"""Sampling and slot look-up in C++ against torch, and against the distributions they draw from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagemill.ops.decode import DecodeOps, DecodeState
from pagemill.ops.sampling import Filters, SamplingOps, SamplingRows
from pagemill.params import SamplingParams
from pagemill.sampling.random import uniform as reference_uniform
from pagemill.sampling.state import SamplingState
from unit.runner.graph_harness import TorchDecode
from unit.sampling.harness import Slots, admission, distribution
from unit.sampling.test_distribution import NUM_DRAWS, check_fit, some_logits

native = pytest.importorskip("pagemill.ops.cpu._native", reason="built without a compiler")

from pagemill.ops.cpu.ops import CpuOps  # noqa: E402

ops = CpuOps()
ALL = Filters(top_k=True, top_p=True, min_p=True)
types = st.sampled_from([torch.float32, torch.bfloat16])


def rows_of(
    uniform: torch.Tensor,
    temperature: float = 1.0,
    top_k: float = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> SamplingRows:
    columns = (torch.full((len(uniform),), float(x)) for x in (temperature, top_k, top_p, min_p))
    return SamplingRows(*columns, uniform)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), width=st.integers(1, 700), dtype=types, seed=st.integers(0, 99))
def test_argmax_takes_the_first_of_equals(
    rows: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.randint(-3, 4, (rows, width + 5)).to(dtype)[:, :width]
    expected = (logits == logits.max(-1, keepdim=True).values).int().argmax(-1)
    assert torch.equal(ops.argmax(logits), expected)


def test_argmax_of_what_is_no_number() -> None:
    logits = torch.full((3, 50), -torch.inf)
    logits[1] = torch.nan
    logits[2, 31] = -1e30
    assert ops.argmax(logits).tolist() == [0, 0, 31]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0),
        SamplingParams(top_k=7),
        SamplingParams(top_k=1),
        SamplingParams(top_k=290),
        SamplingParams(top_p=0.8),
        SamplingParams(top_p=0.01),
        SamplingParams(top_p=0.999),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=40, top_p=0.9, min_p=0.02, temperature=1.3),
    ],
    ids=lambda p: f"t{p.temperature}-k{p.top_k}-p{p.top_p}-m{p.min_p}",
)
def test_draws_follow_the_parameters(params: SamplingParams) -> None:
    logits = some_logits()
    slots = Slots(len(logits), ops=ops)
    slots.admit(admission(2, params, seed=11))
    tokens = slots.draw(logits.expand(NUM_DRAWS, -1), [2] * NUM_DRAWS, range(NUM_DRAWS))
    counts = torch.bincount(torch.tensor(tokens), minlength=len(logits)).numpy()
    check_fit(counts, distribution(logits.double().numpy(), params))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 5000),
    spread=st.sampled_from([0.0, 0.1, 1.0, 4.0, 12.0]),
    dtype=types,
    temperature=st.sampled_from([0.0, 0.01, 0.6, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 50, 400, 100_000]),
    top_p=st.sampled_from([1.0, 0.05, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.02, 0.7, 1.0]),
    seed=st.integers(0, 999),
)
def test_the_same_seed_draws_the_same_tokens_as_torch(
    width: int,
    spread: float,
    dtype: torch.dtype,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
) -> None:
    """But for numbers that fall on a border: the two add up in another order."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    chance = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(40, width, generator=chance)).to(dtype)
    drawn = []
    for kernels in (None, ops):
        slots = Slots(width, ops=kernels)
        slots.admit(admission(1, params, seed=seed))
        drawn.append(slots.draw(logits, [1] * 40, range(40)))
    assert sum(a != b for a, b in zip(*drawn, strict=True)) <= 1


def test_zero_temperature_is_greedy_beside_sampled_rows() -> None:
    logits = torch.randn(2, 9000)
    rows = rows_of(torch.tensor([0.5, 0.5]), top_k=9)
    rows.temperature[0] = 0.0
    assert ops.sample(logits, rows, ALL)[0] == logits[0].argmax()


def test_ties_at_the_threshold_are_all_kept() -> None:
    logits = torch.zeros(4, 64)
    logits[:, 10] = 1.0
    rows = rows_of((torch.arange(4) + 0.5) / 4, top_k=2)
    assert len(set(ops.sample(logits, rows, ALL).tolist())) == 4


@pytest.mark.parametrize("top_p", [1.0, 0.99])
def test_masked_tokens_are_never_drawn(top_p: float) -> None:
    logits = torch.full((8, 6000), -torch.inf)
    logits[:, [7, 4999]] = torch.tensor([0.0, 0.5])
    uniform = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0], dtype=torch.float64)
    tokens = ops.sample(logits, rows_of(uniform, top_p=top_p), ALL)
    assert set(tokens.tolist()) == {7, 4999}


@pytest.mark.parametrize("fill", [torch.nan, -torch.inf, torch.inf])
@pytest.mark.parametrize("width", [1, 300, 5000])
def test_logits_that_are_no_numbers_break_nothing(fill: float, width: int) -> None:
    rows = rows_of(torch.tensor([0.3, 0.99]), top_k=5, top_p=0.9, min_p=0.1)
    logits = torch.full((2, width), fill)
    logits[1, ::2] = 0.0
    tokens = ops.sample(logits, rows, ALL)
    assert ((tokens >= 0) & (tokens < width)).all()


def test_no_rows() -> None:
    logits = torch.zeros(0, 100)
    assert ops.argmax(logits).shape == (0,)
    assert ops.sample(logits, rows_of(torch.zeros(0)), ALL).shape == (0,)


def some_state(num_slots: int) -> DecodeState:
    """The last slot is spare."""
    columns = SamplingState(num_slots, 1000, torch.device("cpu"))
    columns.columns.uniform_()
    columns.seeds.random_(-(2**62), 2**62)
    return DecodeState(
        length=torch.randint(0, 60, (num_slots,)),
        next_input=torch.randint(0, 1000, (num_slots, 2)),
        block_table=torch.randint(0, 99, (num_slots, 8), dtype=torch.int32),
        sampling=columns.by_slot,
    )


def test_rows_are_looked_up_by_slot() -> None:
    assert isinstance(ops, SamplingOps)
    state = some_state(9).sampling
    slots, index = torch.tensor([8, 0, 3]), torch.tensor([1, 70_000, 5])
    rows = ops.sampling_rows(slots, index, state)
    for name in ("temperature", "top_k", "top_p", "min_p"):
        assert torch.equal(getattr(rows, name), getattr(state, name)[slots])
    assert torch.equal(rows.uniform, reference_uniform(state.seeds[slots], index))


@pytest.mark.parametrize("chosen", [[3], [8, 0, 2], [1, 8, 8, 4, 0]])
def test_decode_inputs_and_advance(chosen: list[int]) -> None:
    assert isinstance(ops, DecodeOps)
    state, slots = some_state(9), torch.tensor(chosen)
    made = ops.decode_inputs(slots, state, 8)
    for step in range(3):
        # Looked up anew, or written over what the step before has looked up.
        found = ops.decode_inputs(slots, state, 8, made if step else None)
        expected = TorchDecode().decode_inputs(slots, state, 8)
        for name in ("input_ids", "positions", "slot_mapping", "seq_lens"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        for name in ("temperature", "top_k", "top_p", "min_p", "uniform"):
            assert torch.equal(getattr(found.sampling, name), getattr(expected.sampling, name))
        for own, all_blocks, length in zip(
            found.block_table, expected.block_table, found.seq_lens, strict=True
        ):
            used = -(-int(length) // 8)
            assert torch.equal(own[:used], all_blocks[:used])
        tokens, out = torch.randint(0, 1000, (len(slots),)), torch.zeros(len(slots)).int()
        real = slots != 8
        lengths = state.length.clone()
        lengths[slots[real]] += 1
        ops.decode_advance(slots, state, tokens, out)
        assert torch.equal(out, tokens.int()) and torch.equal(state.length, lengths)
        assert torch.equal(state.next_input[slots[real], 0], tokens[real])
