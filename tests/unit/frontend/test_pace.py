"""`stream_interval`: fewer updates, the same text."""

from __future__ import annotations

import numpy as np
import pytest

from pagemill.engine.messages import RequestDelta
from pagemill.frontend.output_processor import OutputProcessor
from pagemill.frontend.outputs import ChoiceUpdate
from pagemill.frontend.pace import PacedProcessor
from pagemill.params import SamplingParams
from unit.frontend.vocabularies import byte_level

TOKENIZER = byte_level()
TEXT = "eleven char"


def paced(interval: int, **params: object) -> tuple[PacedProcessor, list[ChoiceUpdate]]:
    """The updates of a text that comes token by token."""
    inner = OutputProcessor(0, SamplingParams(max_tokens=99, **params), TOKENIZER)
    processor, updates = PacedProcessor(inner, interval), []
    token_ids = TOKENIZER.encode(TEXT)
    for position, token_id in enumerate(token_ids, 1):
        reason = "length" if position == len(token_ids) else None
        data = np.array([token_id], "<i4").tobytes()
        update = processor.process(RequestDelta("", token_ids=data, finish_reason=reason))
        if update is not None:
            updates.append(update)
    return processor, updates


@pytest.mark.parametrize("interval", [2, 3, 4, 100])
def test_the_first_token_then_so_many_at_once(interval: int) -> None:
    processor, updates = paced(interval)
    assert "".join(update.text for update in updates) == TEXT
    sizes = [len(update.token_ids) for update in updates]
    assert sizes[0] == 1 and set(sizes[1:-1]) <= {interval} and sizes[-1] <= interval
    assert [update.finish_reason for update in updates] == [None] * (len(updates) - 1) + ["length"]
    assert processor.finished and not processor.stopped_early


def test_a_stop_string_ends_what_was_held_back() -> None:
    processor, updates = paced(100, stop=["n c"])
    assert "".join(update.text for update in updates) == "eleve"
    assert updates[-1].stop_reason == "n c" and processor.stopped_early


def test_an_engine_that_fails_lets_go_of_what_was_held_back() -> None:
    inner = OutputProcessor(0, SamplingParams(), TOKENIZER)
    processor = PacedProcessor(inner, 100)
    for token_id in TOKENIZER.encode("ab"):
        processor.process(RequestDelta("", token_ids=np.array([token_id], "<i4").tobytes()))
    last = processor.fail("gone")
    assert last is not None and (last.text, last.finish_reason) == ("b", "error")
