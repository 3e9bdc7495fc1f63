"""A row's token depends on its own request only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pagemill.params import SamplingParams
from pagemill.sampling import sampler as sampler_module
from unit.sampling.harness import DEVICES, Slots, admission

VOCAB = 1000
KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, seed=1),
    SamplingParams(top_k=5, seed=2),
    SamplingParams(top_p=0.8, min_p=0.05, seed=3),
    SamplingParams(top_k=50, top_p=0.95, repetition_penalty=1.2, seed=4),
    SamplingParams(temperature=0.0, logit_bias={7: 100.0}),
]


def filled(device: str) -> Slots:
    slots = Slots(VOCAB, device)
    slots.admit(*(admission(i, p, seed=p.seed or 0) for i, p in enumerate(KINDS)))
    return slots


@pytest.mark.parametrize("device", DEVICES)
def test_other_rows_do_not_matter(device: str) -> None:
    logits = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(5)) * 3
    rng = np.random.default_rng(0)
    which = rng.integers(0, len(KINDS), 40).tolist()
    index = rng.integers(1, 500, 40).tolist()
    slots = filled(device)
    together = slots.draw(logits, which, index)
    alone = [slots.draw(logits[i : i + 1], [which[i]], [index[i]])[0] for i in range(40)]
    assert together == alone
    backwards = slots.draw(logits.flip(0), which[::-1], index[::-1])
    assert backwards[::-1] == together


def test_large_batches_are_drawn_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(9, VOCAB) * 3
    slots = filled("cpu")
    whole = slots.draw(logits, [3, 4, 0, 2, 3, 1, 5, 3, 4], range(9))
    monkeypatch.setitem(sampler_module._LOGITS_AT_ONCE, "cpu", 2 * VOCAB)
    slots = filled("cpu")
    assert slots.draw(logits, [3, 4, 0, 2, 3, 1, 5, 3, 4], range(9)) == whole


def test_seed_and_place_decide() -> None:
    logits = torch.zeros(1, VOCAB)
    slots = filled("cpu")
    drawn = {(slot, i): slots.draw(logits, [slot], [i])[0] for slot in (1, 2, 3) for i in range(20)}
    assert len(set(drawn.values())) > 40
    slots.admit(admission(5, KINDS[1], seed=1))
    again = [slots.draw(logits, [5], [i])[0] for i in range(20)]
    assert again == [drawn[1, i] for i in range(20)]


def test_greedy_is_the_largest_logit_and_a_slot_forgets_its_last_request() -> None:
    slots = filled("cpu")
    logits = torch.zeros(1, VOCAB)
    logits[0, 123] = 1.0
    assert slots.draw(logits, [0], [9]) == [123]
    assert slots.draw(logits, [5], [9]) == [7]
    slots.admit(admission(5, SamplingParams(temperature=0.0)))
    assert slots.draw(logits, [5], [9]) == [123]


def test_greedy_rows_run_no_processor() -> None:
    slots = filled("cpu")
    assert not slots.sampler.changes_logits(slots.rows([0, 1, 2], [1, 1, 1]))
    assert slots.sampler.changes_logits(slots.rows([0, 4], [1, 1]))
    assert slots.draw(torch.zeros(0, VOCAB), [], []) == []
