"""From engine deltas to updates: text, stop strings, tokens, log-probabilities."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagemill.engine.messages import FinishReason, LogprobsChunk, RequestDelta
from pagemill.frontend.output_processor import OutputProcessor
from pagemill.frontend.outputs import ChoiceUpdate
from pagemill.params import SamplingParams
from unit.frontend.vocabularies import byte_level

TOKENIZER = byte_level()
END = TOKENIZER.backend.token_to_id("<|end|>")


def delta(
    token_ids: list[int], finish: FinishReason | None = None, **fields: object
) -> RequestDelta:
    data = np.asarray(token_ids, "<i4").tobytes()
    return RequestDelta("r-0", token_ids=data, finish_reason=finish, **fields)


def chunk(rows: list[list[tuple[int, float]]], ranks: list[int]) -> LogprobsChunk:
    table = np.asarray(rows)
    return LogprobsChunk(
        len(rows),
        len(rows[0]),
        table[..., 0].astype("<i4").tobytes(),
        table[..., 1].astype("<f4").tobytes(),
        np.asarray(ranks, "<i4").tobytes(),
    )


def run(
    params: SamplingParams, *deltas: RequestDelta
) -> tuple[OutputProcessor, list[ChoiceUpdate]]:
    processor = OutputProcessor(0, params, TOKENIZER)
    updates = [update for d in deltas if (update := processor.process(d)) is not None]
    return processor, updates


def words(text: str) -> list[RequestDelta]:
    return [delta([token_id]) for token_id in TOKENIZER.encode(text)]


def test_text_and_tokens_add_up() -> None:
    token_ids = TOKENIZER.encode("héllo 😀")
    processor, updates = run(
        SamplingParams(), *words("héllo 😀"), delta([END], "length", num_cached_tokens=4)
    )
    assert "".join(u.text for u in updates) == "héllo 😀"
    assert [i for u in updates for i in u.token_ids] == [*token_ids, END]
    assert updates[-1].finish_reason == "length"
    assert updates[-1].num_cached_tokens == 4
    assert processor.finished and not processor.stopped_early


def test_a_stop_string_ends_the_choice_early() -> None:
    params = SamplingParams(stop=["stop"], max_tokens=100)
    processor, updates = run(params, *words("hello stop more"))
    assert "".join(u.text for u in updates) == "hello "
    assert (updates[-1].finish_reason, updates[-1].stop_reason) == ("stop", "stop")
    assert processor.stopped_early


def test_tokens_behind_a_stop_string_do_not_count() -> None:
    token_ids = TOKENIZER.encode("a stop more")
    ranks = [1] * len(token_ids)
    logprobs = chunk([[(i, -1.0)] for i in token_ids], ranks)
    _, [update] = run(
        SamplingParams(stop=["stop"], include_stop_str_in_output=True, logprobs=0),
        delta(token_ids, "length", logprobs=logprobs),
    )
    assert update.text == "a stop"
    assert TOKENIZER.decode(update.token_ids) == "a stop"
    assert update.logprobs is not None and len(update.logprobs) == len(update.token_ids)
    assert update.finish_reason == "stop"


def test_held_back_text_comes_at_the_end() -> None:
    _, updates = run(SamplingParams(stop=["stop!"]), *words("a stop"), delta([], "length"))
    assert "".join(u.text for u in updates[:-1]) == "a "
    assert updates[-1].text == "stop"


def test_min_tokens_holds_for_stop_strings() -> None:
    deltas = words("a a a a")
    params = SamplingParams(stop=["a"], min_tokens=3, max_tokens=20)
    _, updates = run(params, *deltas)
    assert "".join(u.text for u in updates) == "a a "
    assert updates[-1].stop_reason == "a"


@pytest.mark.parametrize(
    ("params", "last", "text"),
    [
        (SamplingParams(skip_special_tokens=False, eos_token_ids=[END]), END, "a"),
        (SamplingParams(stop_token_ids=[TOKENIZER.encode("!")[0]]), TOKENIZER.encode("!")[0], "a"),
        (
            SamplingParams(
                skip_special_tokens=False, eos_token_ids=[END], include_stop_str_in_output=True
            ),
            END,
            "a<|end|>",
        ),
        (SamplingParams(eos_token_ids=[END]), TOKENIZER.encode("!")[0], "a!"),  # a grammar's end
    ],
)
def test_the_token_that_stops_is_silent(params: SamplingParams, last: int, text: str) -> None:
    _, updates = run(params, *words("a"), delta([last], "stop"))
    assert "".join(u.text for u in updates) == text
    assert updates[-1].token_ids == [last]


def test_logprobs_have_exact_bytes() -> None:
    first, *_ = TOKENIZER.encode("😀")
    other = TOKENIZER.encode("a")[0]
    _, [update] = run(
        SamplingParams(logprobs=1),
        delta([first], logprobs=chunk([[(first, -2.5), (other, -0.5)]], [7])),
    )
    assert update.logprobs is not None
    [position] = update.logprobs
    assert (position.chosen.token_bytes, position.chosen.token) == ("😀".encode()[:2], "�")
    assert (position.chosen.logprob, position.chosen.rank) == (-2.5, 7)
    assert [(t.token, t.logprob, t.rank) for t in position.top] == [("a", -0.5, 1)]


def test_prompt_logprobs_come_complete_with_the_first_token() -> None:
    params = SamplingParams(prompt_logprobs=0)
    part = chunk([[(5, -1.0)], [(6, -2.0)]], [1, 3])
    _, updates = run(
        params,
        delta([], prompt_logprobs=part),
        delta([7], prompt_logprobs=chunk([[(8, -3.0)]], [2])),
        delta([9], "length"),
    )
    prompt = updates[0].prompt_logprobs
    assert prompt is not None and prompt[0] is None
    assert [p.chosen.token_id for p in prompt[1:] if p] == [5, 6, 8]
    assert updates[1].prompt_logprobs is None


def test_max_tokens_0_answers_with_the_prompt_only() -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, logprobs=0)
    _, updates = run(
        params,
        delta([], prompt_logprobs=chunk([[(5, -1.0)]], [1])),
        delta([END], "stop", logprobs=chunk([[(END, -1.0)]], [1])),
    )
    [update] = updates
    assert (update.text, update.token_ids, update.logprobs) == ("", [], None)
    assert update.finish_reason == "length"
    assert update.prompt_logprobs is not None and len(update.prompt_logprobs) == 2


def test_detokenize_off_gives_tokens_only() -> None:
    _, updates = run(SamplingParams(detokenize=False), *words("ab"), delta([], "length"))
    assert [u.text for u in updates] == ["", "", ""]
    assert len([i for u in updates for i in u.token_ids]) == 2


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("sto p", max_size=12),
    stops=st.lists(st.text("stop", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_grouping_of_tokens_changes_nothing(text: str, stops: list[str], cuts: list[int]) -> None:
    token_ids = TOKENIZER.encode(text)
    bounds = sorted({0, *(min(c, len(token_ids)) for c in cuts), len(token_ids)})
    groups = [token_ids[a:b] for a, b in itertools.pairwise(bounds)]
    params = SamplingParams(stop=stops or None)

    def total(parts: list[list[int]]) -> tuple[str, list[int], object]:
        _, updates = run(params, *(delta(part) for part in parts), delta([], "length"))
        kept = [i for u in updates for i in u.token_ids]
        return "".join(u.text for u in updates), kept, updates[-1].stop_reason

    assert total(groups) == total([[i] for i in token_ids])
