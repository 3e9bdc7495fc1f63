"""The runner computes what a plain loop over one sequence computes, however steps are cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pagemill.params import SamplingParams, ThinkingTokens
from pagemill.sampling.bitmask import pack_bits
from pagemill.speculative.ngram import NgramSpeculator
from unit.runner.harness import (
    BLOCK_SIZE,
    DEVICES,
    GREEDY,
    VOCAB,
    CacheModel,
    Driver,
    Row,
    TwoTableModel,
    greedy_reference,
    logits_after,
)

PROMPT = [5, 17, 42, 3, 3, 58, 21, 7, 9]
OTHER = [1, 2, 3]
WARM = SamplingParams(temperature=1.0, top_p=0.95, repetition_penalty=1.1)


@pytest.fixture(params=[*DEVICES, "two tables"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    if request.param == "two tables":
        made = Driver(model=TwoTableModel(), num_tables=2)
    else:
        made = Driver(request.param)
    yield made
    made.device.close()


def generate(driver: Driver, slot: int, first: int, num_tokens: int) -> list[int]:
    """The whole rest of the text in one step, then token by token."""
    out = driver.tokens(Row(slot, first))[0]
    while len(out) < num_tokens:
        out += driver.tokens(Row(slot))[0]
    return out


def test_greedy_tokens_are_the_models(driver: Driver) -> None:
    driver.admit(2, PROMPT)
    assert generate(driver, 2, len(PROMPT), 20) == greedy_reference(PROMPT, 20)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_prompts_may_come_in_chunks(driver: Driver, chunk: int) -> None:
    driver.admit(0, PROMPT)
    *before, last = [min(chunk, len(PROMPT) - i) for i in range(0, len(PROMPT), chunk)]
    for count in before:
        assert driver.tokens(Row(0, count, samples=False)) == [[]]
    assert generate(driver, 0, last, 5) == greedy_reference(PROMPT, 5)


def test_rows_of_all_kinds_share_a_step(driver: Driver) -> None:
    driver.admit(3, OTHER)
    one = driver.tokens(Row(3, len(OTHER)))[0]
    driver.admit(1, PROMPT)
    driver.admit(4, [8])
    results = [driver.tokens(Row(3), Row(1, 4, samples=False), Row(4, 1))]
    results.append(driver.tokens(Row(1, 5), Row(4), Row(3)))
    results += [driver.tokens(Row(4), Row(3), Row(1)) for _ in range(3)]
    columns = [(0, 2, 1, 1, 1), (None, 0, 2, 2, 2), (2, 1, 0, 0, 0)]
    joined = [
        [
            t
            for step, column in zip(results, c, strict=True)
            if column is not None
            for t in step[column]
        ]
        for c in columns
    ]
    assert one + joined[0] == greedy_reference(OTHER, 6)
    assert joined[1] == greedy_reference(PROMPT, 4)
    assert joined[2] == greedy_reference([8], 5)


def test_steps_are_launched_before_results_are_known(driver: Driver) -> None:
    driver.admit(0, PROMPT)
    driver.admit(1, OTHER)
    pending = [driver.launch(Row(0, len(PROMPT)), Row(1, len(OTHER)))]
    pending += [driver.launch(Row(0), Row(1)) for _ in range(12)]
    tokens = np.concatenate([p.wait().token_ids for p in pending], axis=1).tolist()
    assert tokens == [greedy_reference(PROMPT, 13), greedy_reference(OTHER, 13)]


def test_slots_are_reused(driver: Driver) -> None:
    for prompt in (PROMPT, OTHER, [4] * 11):
        driver.admit(1, prompt)
        assert generate(driver, 1, len(prompt), 6) == greedy_reference(prompt, 6)


def test_a_cached_prefix_is_read_through_the_block_table(driver: Driver) -> None:
    driver.admit(0, PROMPT)
    generate(driver, 0, len(PROMPT), 2)
    shared = driver.blocks[0, :2].tolist()
    text = [*PROMPT[: 2 * BLOCK_SIZE], 33, 34]
    driver.admit(1, text, num_computed=2 * BLOCK_SIZE, block_ids=shared)
    assert generate(driver, 1, 2, 5) == greedy_reference(text, 5)


@pytest.mark.parametrize("params", [GREEDY, WARM])
def test_a_resumed_request_goes_on_as_if_nothing_had_happened(
    driver: Driver, params: SamplingParams
) -> None:
    driver.admit(0, PROMPT, params, seed=77)
    whole = generate(driver, 0, len(PROMPT), 12)
    for done in (1, 5):
        text = PROMPT + whole[:done]
        driver.admit(2, text, params, seed=77, prompt_len=len(PROMPT))
        driver.tokens(Row(2, 6, samples=False))
        assert generate(driver, 2, len(text) - 6, 12 - done) == whole[done:]


class OracleSpeculator:
    """Guesses with the model itself, wrongly at every third place."""

    def __init__(self, max_drafts: int) -> None:
        self.max_drafts = max_drafts

    def propose(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        drafts = []
        for text, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
            text, guess = text[:length], []
            for _ in range(self.max_drafts):
                place = len(text) + len(guess)
                right = int(logits_after(text + guess).argmax())
                guess.append(right if place % 3 else (right + 1) % VOCAB)
            drafts.append(guess)
        return torch.tensor(drafts, device=tokens.device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "random"])
@pytest.mark.parametrize("num_drafts", [1, 2, 4])
def test_drafts_change_nothing_but_the_number_of_steps(
    num_drafts: int, params: SamplingParams, device: str
) -> None:
    driver = Driver(device, OracleSpeculator(num_drafts))
    expected = []
    for slot, prompt in enumerate((PROMPT, OTHER)):
        driver.admit(3, prompt, params, seed=5)
        expected.append(generate(driver, 3, len(prompt), 40))
        driver.admit(slot, prompt, params, seed=5)
    launched = [Row(0, len(PROMPT)), Row(1, len(OTHER))]
    pending, out, steps = driver.launch(*launched), [[], []], 0
    while len(out[0]) < 30:
        # Launched before it is known how many drafts the step before accepts.
        following = [Row(0, num_drafts=num_drafts), Row(1, num_drafts=num_drafts * (steps % 2))]
        next_pending = driver.launch(*following)
        result = pending.wait()
        for row, tokens, count in zip(launched, result.token_ids, result.num_tokens, strict=True):
            out[row.slot] += tokens[:count].tolist()
            driver.rejected(row.slot, row.num_drafts + 1 - int(count))
        launched, pending, steps = following, next_pending, steps + 1
    driver.device.close()
    for text, reference in zip(out, expected, strict=True):
        assert text[:40] == reference[: len(text)]
    assert params is WARM or steps < 0.8 * len(out[0])


class FixedSpeculator:
    max_drafts = 2

    def propose(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return torch.tensor([[5, 6]], device=tokens.device).expand(len(tokens), -1)


@pytest.mark.parametrize("others", [[], [Row(1, 2, samples=False)]], ids=["uniform", "mixed"])
def test_processors_count_the_drafts_before_a_place(others: list[Row]) -> None:
    """With each token less wanted once it is there, the text must be 4 5 6 4."""
    driver = Driver(speculator=FixedSpeculator())
    bias = {4: 100.0, 5: 80.0, 6: 60.0}
    driver.admit(0, [1, 2], SamplingParams(temperature=0, logit_bias=bias, repetition_penalty=2))
    driver.admit(1, PROMPT)
    assert driver.tokens(Row(0, 2)) == [[4]]
    assert driver.tokens(Row(0, num_drafts=2), *others)[0] == [5, 6, 4]
    driver.device.close()


def test_reasoning_is_closed_in_the_middle_of_drafts() -> None:
    """The model wants nothing but 5; the drafts are 5 6."""
    driver = Driver(speculator=FixedSpeculator())
    budget = SamplingParams(
        temperature=0,
        logit_bias={5: 100.0},
        thinking_token_budget=2,
        thinking=ThinkingTokens(open_id=20, close_id=21, in_prompt=True),
    )
    driver.admit(0, [1, 2], budget)
    assert driver.tokens(Row(0, 2)) == [[5]]
    assert driver.tokens(Row(0, num_drafts=2)) == [[5, 21]]
    driver.rejected(0, 1)
    assert driver.tokens(Row(0, num_drafts=2)) == [[5, 5]]
    driver.device.close()


def test_repeated_text_is_foreseen_by_ngrams() -> None:
    driver = Driver(speculator=NgramSpeculator(2))
    driver.admit(0, [1, 2, 3, 4, 1, 2, 3], SamplingParams(temperature=0.0, logit_bias={4: 100.0}))
    assert driver.tokens(Row(0, 7)) == [[4]]
    # After "1 2 3 4" comes "1 2"; the bias makes every token a 4.
    assert driver.tokens(Row(0, num_drafts=2)) == [[4]]
    driver.rejected(0, 2)
    assert driver.tokens(Row(0, num_drafts=2)) == [[4, 4, 4]]
    driver.device.close()


def test_log_probabilities_are_raw_and_in_place(driver: Driver) -> None:
    params = SamplingParams(temperature=0.0, logprobs=3, logit_bias={11: 100.0})
    driver.admit(0, OTHER)
    driver.admit(1, PROMPT, params)
    result = driver.step(Row(0, 3), Row(1, len(PROMPT)))
    assert result.token_ids.tolist() == [[greedy_reference(OTHER, 1)[0]], [11]]
    assert result.logprobs is not None
    expected = logits_after(PROMPT).log_softmax(0)
    top = expected.topk(3)
    ids = result.logprobs.token_ids[1, 0]
    assert ids.tolist() == [11, *top.indices.tolist()]
    np.testing.assert_allclose(result.logprobs.logprobs[1, 0], expected[ids], atol=1e-4)
    assert result.logprobs.ranks[1, 0] == 1 + int((expected > expected[11]).sum())
    assert driver.step(Row(0)).logprobs is None


@pytest.mark.parametrize("chunk", [2, 9])
def test_prompt_log_probabilities_cover_every_token_after_the_first(
    driver: Driver, chunk: int
) -> None:
    driver.admit(2, OTHER)
    driver.step(Row(2, 3))
    driver.admit(0, PROMPT, SamplingParams(prompt_logprobs=2))
    ids, values, ranks = [], [], []
    for first in range(0, len(PROMPT), chunk):
        count = min(chunk, len(PROMPT) - first)
        last = first + count == len(PROMPT)
        result = driver.step(Row(2), Row(0, count, samples=last))
        if result.prompt_logprobs is None:
            continue
        part = result.prompt_logprobs[1]
        ids += part.token_ids.tolist()
        values += part.logprobs.tolist()
        ranks += part.ranks.tolist()
    assert [i[0] for i in ids] == PROMPT[1:]
    for place in range(1, len(PROMPT)):
        expected = logits_after(PROMPT[:place]).log_softmax(0)
        np.testing.assert_allclose(values[place - 1], expected[ids[place - 1]], atol=1e-4)
        assert ids[place - 1][1:] == expected.topk(2).indices.tolist()
        assert ranks[place - 1] == 1 + int((expected > expected[PROMPT[place]]).sum())


def test_a_bitmask_restricts_its_rows_only(driver: Driver) -> None:
    driver.admit(0, PROMPT)
    driver.admit(1, PROMPT)
    allowed = [4, 44]
    result = driver.step(
        Row(0, len(PROMPT)),
        Row(1, len(PROMPT), grammar=True),
        bitmask=pack_bits(allowed, VOCAB)[None],
    )
    logits = logits_after(PROMPT)
    assert result.token_ids[0] == greedy_reference(PROMPT, 1)
    assert result.token_ids[1] == allowed[int(logits[allowed].argmax())]


def test_a_failed_forward_pass_surfaces_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: CacheModel, batch: object) -> Tensor:
        raise RuntimeError("the device is on fire")

    driver = Driver()
    driver.admit(0, OTHER)
    monkeypatch.setattr(CacheModel, "forward", fail)
    pending = driver.launch(Row(0, 3))
    with pytest.raises(RuntimeError, match="on fire"):
        pending.wait()
    driver.device.close()
