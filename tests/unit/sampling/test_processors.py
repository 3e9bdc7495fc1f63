"""Every processor against a plain reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pagemill.params import SamplingParams, ThinkingTokens
from pagemill.sampling.base import SUPPRESSED
from pagemill.sampling.bitmask import apply_bitmask, pack_bits
from pagemill.sampling.processors.penalties import Penalties
from unit.sampling.harness import DEVICES, NUM_SLOTS, Slots, admission

VOCAB = 50
PROMPT = [3, 4, 4, 9]
GREEDY = {"temperature": 0.0}


def some_logits(rows: int = 1) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1)) * 4


def penalised(logits: Tensor, params: SamplingParams, prompt: list[int], out: list[int]) -> Tensor:
    expected = logits.clone()
    for token in range(VOCAB):
        value = float(logits[token])
        if token in prompt or token in out:
            factor = params.repetition_penalty
            value = value / factor if value > 0 else value * factor
        value -= params.frequency_penalty * out.count(token)
        value -= params.presence_penalty * (token in out)
        expected[token] = value
    return expected


PENALTIES = SamplingParams(
    repetition_penalty=1.7, frequency_penalty=0.5, presence_penalty=-0.25, **GREEDY
)


@pytest.mark.parametrize("device", DEVICES)
def test_penalties_count_prompt_and_output(device: str) -> None:
    slots = Slots(VOCAB, device)
    slots.admit(
        admission(0, SamplingParams(**GREEDY)),
        admission(1, PENALTIES, token_ids=[*PROMPT, 20, 21, 20], prompt_len=4),
    )
    slots.observe(1, 7, [20, 33, 44], 2)  # the third was not accepted
    slots.observe(0, 5, [9, 9, 9], 3)
    logits = some_logits(2)
    result = slots.process(logits, slots.rows([0, 1], [8, 9]))
    assert torch.equal(result[0], logits[0])
    expected = penalised(logits[1], PENALTIES, PROMPT, [20, 21, 20, 20, 33])
    torch.testing.assert_close(result[1], expected)


def test_penalties_see_the_drafts_before_a_place() -> None:
    slots = Slots(VOCAB)
    slots.admit(admission(1, PENALTIES, token_ids=PROMPT))
    logits = some_logits(3)
    rows = slots.rows([1] * 3, [4, 5, 6], drafts=[[8, 9]] * 3, num_preceding=[0, 1, 2])
    result = slots.process(logits, rows)
    for i, out in enumerate(([], [8], [8, 9])):
        torch.testing.assert_close(result[i], penalised(logits[i], PENALTIES, PROMPT, out))


def test_a_slot_starts_with_fresh_counts_and_rows_are_reused() -> None:
    slots = Slots(VOCAB)
    for turn in range(40):
        slot = turn % 5
        slots.admit(admission(slot, PENALTIES, token_ids=[turn]))
        slots.observe(slot, 1, [turn + 1], 1)
        logits = some_logits()
        result = slots.process(logits, slots.rows([slot], [2]))
        torch.testing.assert_close(result[0], penalised(logits[0], PENALTIES, [turn], [turn + 1]))


def test_rows_of_counts_are_given_back() -> None:
    slots = Slots(VOCAB)
    (penalties,) = (p for p in slots.sampler.processors if isinstance(p, Penalties))
    used = set()
    for turn in range(30):
        for slot in range(NUM_SLOTS):
            slots.admit(admission(slot, PENALTIES if turn % 3 else SamplingParams()))
        used |= set(penalties.host_row.tolist())
    assert len(used) <= 8


def test_logit_bias_adds() -> None:
    bias = {i: float(i) - 5 for i in range(1, 20)}
    slots = Slots(VOCAB)
    slots.admit(
        admission(3, SamplingParams(logit_bias={4: 2.5}, **GREEDY)),
        admission(2, SamplingParams(logit_bias=bias, **GREEDY)),  # wider than the table was
    )
    logits = some_logits(2)
    expected = logits.clone()
    expected[0, 4] += 2.5
    for token, value in bias.items():
        expected[1, token] += value
    result = slots.process(logits, slots.rows([3, 2], [5, 5]))
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_only_allowed_tokens_are_left(device: str) -> None:
    slots = Slots(VOCAB, device)
    slots.admit(admission(0, SamplingParams(allowed_token_ids=[0, 31, 32, 49], **GREEDY)))
    result = slots.process(some_logits(), slots.rows([0], [1]))
    assert result[0].isfinite().nonzero().flatten().tolist() == [0, 31, 32, 49]


def test_nothing_ends_before_min_tokens() -> None:
    params = SamplingParams(min_tokens=3, stop_token_ids=[7], eos_token_ids=[2], **GREEDY)
    slots = Slots(VOCAB)
    slots.admit(admission(0, params, token_ids=PROMPT))
    logits = some_logits(4)
    result = slots.process(logits, slots.rows([0] * 4, [4, 5, 6, 7]))
    for i in range(4):
        suppressed = (result[i] < SUPPRESSED / 2).nonzero().flatten().tolist()
        assert suppressed == ([2, 7] if i < 3 else [])


OPEN, CLOSE = 30, 31


def thinking(budget: int, *, in_prompt: bool) -> SamplingParams:
    marks = ThinkingTokens(OPEN, CLOSE, in_prompt)
    return SamplingParams(thinking_token_budget=budget, thinking=marks, **GREEDY)


def forced(slots: Slots, slot: int, index: int, **drafts: Any) -> bool:
    """Whether only the token that closes reasoning is left."""
    logits = some_logits()
    result = slots.process(logits, slots.rows([slot], [index], **drafts))
    open_ended = (result[0] > SUPPRESSED / 2).nonzero().flatten().tolist()
    assert result[0, CLOSE] == logits[0, CLOSE]
    assert open_ended == [CLOSE] or torch.equal(result, logits)
    return open_ended == [CLOSE]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("in_prompt", [False, True])
def test_reasoning_ends_with_its_budget(in_prompt: bool, device: str) -> None:
    slots = Slots(VOCAB, device)
    slots.admit(admission(2, thinking(2, in_prompt=in_prompt), token_ids=PROMPT))
    place = len(PROMPT)
    if not in_prompt:
        for token in (4, 4, 4, OPEN):  # before it reasons, nothing counts
            assert not forced(slots, 2, place)
            slots.observe(2, place, [token], 1)
            place += 1
    for token in (5, 6):
        assert not forced(slots, 2, place)
        slots.observe(2, place, [token], 1)
        place += 1
    assert forced(slots, 2, place)
    slots.observe(2, place, [CLOSE], 1)
    assert not forced(slots, 2, place + 1)
    slots.observe(2, place + 1, [OPEN], 1)  # reasoning stands first: this is text
    assert not forced(slots, 2, place + 9)


def test_reasoning_that_ended_by_itself_is_left_alone() -> None:
    slots = Slots(VOCAB)
    slots.admit(admission(0, thinking(3, in_prompt=True), token_ids=PROMPT))
    slots.observe(0, 4, [5, CLOSE, 5], 2)
    assert not forced(slots, 0, 20)


def test_a_budget_counts_what_was_thought_before_a_preemption() -> None:
    slots = Slots(VOCAB)
    for output, is_forced in (([5, 6], False), ([5, 6, 7], True), ([5, CLOSE, 7, 7], False)):
        text = [*PROMPT, *output]
        params = thinking(3, in_prompt=True)
        slots.admit(admission(0, params, token_ids=text, prompt_len=len(PROMPT)))
        assert forced(slots, 0, len(text)) is is_forced
    slots.admit(admission(0, SamplingParams(**GREEDY), token_ids=PROMPT))
    assert not forced(slots, 0, 40)


def test_a_budget_sees_the_drafts_before_a_place() -> None:
    slots = Slots(VOCAB)
    slots.admit(admission(1, thinking(2, in_prompt=True), token_ids=PROMPT))
    for drafts, preceding, is_forced in (
        ([5, 6], 1, False),
        ([5, 6], 2, True),
        ([5, CLOSE], 2, False),
        ([CLOSE, 6], 2, False),
    ):
        place = len(PROMPT) + preceding
        seen = {"drafts": [drafts], "num_preceding": [preceding]}
        assert forced(slots, 1, place, **seen) is is_forced
    slots.admit(admission(1, thinking(1, in_prompt=False), token_ids=PROMPT))
    for drafts, is_forced in (([OPEN, 6], True), ([6, OPEN], False)):
        seen = {"drafts": [drafts], "num_preceding": [2]}
        assert forced(slots, 1, len(PROMPT) + 2, **seen) is is_forced


def test_a_suppressed_token_wins_against_forbidden_ones() -> None:
    params = SamplingParams(min_tokens=3, allowed_token_ids=[2], eos_token_ids=[2])
    slots = Slots(VOCAB)
    slots.admit(admission(0, params, token_ids=PROMPT))
    assert slots.draw(some_logits(), [0], [4]) == [2]


def banned(slots: Slots, index: int, **drafts: list[list[int]] | list[int]) -> list[int]:
    rows = slots.rows([1], [index], **drafts)  # type: ignore[arg-type]
    result = slots.process(some_logits(), rows)
    return (result[0] < SUPPRESSED / 2).nonzero().flatten().tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_bad_words_are_not_completed(device: str) -> None:
    words = [[5], [10, 11], [10, 11, 12], [9, 40]]
    slots = Slots(VOCAB, device)
    params = SamplingParams(bad_words=["x"], bad_words_token_ids=words, **GREEDY)
    slots.admit(admission(1, params, token_ids=PROMPT))  # ends in 9, but the prompt does not count
    assert banned(slots, 4) == [5]
    slots.observe(1, 4, [10], 1)
    assert banned(slots, 5) == [5, 11]
    slots.observe(1, 5, [11, 9], 1)
    assert banned(slots, 6) == [5, 12]
    draft = {"drafts": [[9, 10]], "num_preceding": [1]}
    assert banned(slots, 7, **draft) == [5, 40]
    assert banned(slots, 8, drafts=[[9, 10]], num_preceding=[2]) == [5, 11]


def test_bad_words_remember_what_was_generated_before_a_preemption() -> None:
    params = SamplingParams(bad_words=["x"], bad_words_token_ids=[[6, 7, 8]], **GREEDY)
    slots = Slots(VOCAB)
    slots.admit(admission(1, params, token_ids=[*PROMPT, 6, 7], prompt_len=4))
    slots.observe(1, 5, [50], 0)  # a chunk of the known text that yields nothing
    assert banned(slots, 6) == [8]
    slots.admit(admission(1, params, token_ids=[*PROMPT, 6, 7], prompt_len=5))
    assert banned(slots, 6) == []


def test_bitmask_forbids_what_has_no_bit() -> None:
    logits = torch.zeros(2, VOCAB)
    masks = np.stack([pack_bits([1, 33], VOCAB), pack_bits(list(range(VOCAB)), VOCAB)])
    apply_bitmask(logits, torch.from_numpy(masks))
    assert logits[0].isfinite().nonzero().flatten().tolist() == [1, 33]
    assert logits[1].isfinite().all()
    apply_bitmask(logits, torch.from_numpy(masks[:, :1].copy()))
    assert logits[1].isfinite().sum() == 32, "words that are missing allow nothing"
