"""Steps with prompts through graphs: tokens, cache and slots of a run without, whatever the rows.

`graph_harness` has a device that needs no GPU for it.
"""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pagemill.params import SamplingParams
from pagemill.runner import packed_graphs
from pagemill.runner.decode_step import Sampling
from pagemill.runner.packed_graphs import row_sizes, token_limit, token_sizes
from pagemill.sampling.bitmask import pack_bits
from unit.runner.graph_harness import GraphDriver, TorchPacked
from unit.runner.harness import (
    GREEDY,
    MAX_LEN,
    NUM_SLOTS,
    VOCAB,
    CacheModel,
    Driver,
    Row,
    TwoTableModel,
    greedy_reference,
)

RANDOM = SamplingParams(temperature=0.8)
FILTERED = SamplingParams(temperature=0.8, top_p=0.7)
CHAT = SamplingParams(temperature=0.6, top_p=0.95, top_k=20)
MIN_P = SamplingParams(temperature=1.2, min_p=0.1)
PENALISED = SamplingParams(temperature=0.0, repetition_penalty=1.8)
SCORED = SamplingParams(temperature=0.0, logprobs=2)
PLAIN = [GREEDY, RANDOM]
CHATS = [*PLAIN, FILTERED, CHAT, MIN_P]
MIXED = [*CHATS, PENALISED, SCORED]


@pytest.fixture
def eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are captured when they are first met."""
    monkeypatch.setattr(packed_graphs, "_EAGER_STEPS", 1)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph stands in for a smaller one."""
    for name in ("_CHEAP_TOKENS", "_CHEAP_ROWS", "_TOKENS_SHARE", "_ROWS_SHARE"):
        monkeypatch.setattr(packed_graphs, name, 0)


def packed_driver(num_tables: int = 1) -> GraphDriver:
    return GraphDriver(num_tables, TorchPacked(), max_num_batched_tokens=512)


def eager_driver(num_tables: int = 1) -> Driver:
    if num_tables == 1:
        return Driver()
    return Driver(model=TwoTableModel(), num_tables=num_tables)


class Traffic:
    """Random requests that come, are computed in chunks, generate and make room for others."""

    def __init__(self, seed: int, kinds: list[SamplingParams], drivers: list[Driver]) -> None:
        self._chance = np.random.default_rng(seed)
        self._kinds = kinds
        self._drivers = drivers
        self._left = dict.fromkeys(range(NUM_SLOTS), 0)  # prompt tokens to be computed
        self._steps = dict.fromkeys(range(NUM_SLOTS), 0)  # tokens to be generated

    def rows(self) -> list[Row]:
        """A step's rows, in any order, with at least one that has a prompt."""
        slots = self._chance.permutation(NUM_SLOTS)[: self._chance.integers(1, NUM_SLOTS + 1)]
        rows = [self._row(int(slot)) for slot in slots]
        return rows if any(row.num_known for row in rows) else self.rows()

    def _row(self, slot: int) -> Row:
        if not self._left[slot] and self._steps[slot] <= 0:
            self._admit(slot)
        if not self._left[slot]:
            self._steps[slot] -= 1
            return Row(slot)
        count = int(self._chance.integers(1, self._left[slot] + 1))
        if self._chance.random() < 0.5:
            count = self._left[slot]
        self._left[slot] -= count
        return Row(slot, count, samples=not self._left[slot])

    def _admit(self, slot: int) -> None:
        text = self._chance.integers(0, VOCAB, self._chance.integers(1, MAX_LEN - 20)).tolist()
        kind = self._kinds[self._chance.integers(len(self._kinds))]
        seed = int(self._chance.integers(1 << 40))
        for driver in self._drivers:
            driver.admit(slot, text, kind, seed=seed)
        self._left[slot], self._steps[slot] = len(text), int(self._chance.integers(1, 15))


def assert_same_state(graphs: GraphDriver, eager: Driver) -> None:
    """Slots and all pages that some block table may lead to."""
    ours, theirs = graphs.runner._slots, eager.runner._slots
    assert torch.equal(ours.length, theirs.length)
    assert torch.equal(ours.next_input, theirs.next_input)
    assert torch.equal(ours.block_tables, theirs.block_tables)
    assert not int(ours.length[ours.scratch])
    pages, expected = (d.runner._kv_cache[0].k.flatten(1) for d in (graphs, eager))
    assert torch.equal(pages[: len(expected)], expected)
    assert len(pages) == len(expected) + 1  # the last cell is for padding


@pytest.mark.usefixtures("eager_steps", "exact")
@pytest.mark.parametrize("num_tables", [1, 2])
@pytest.mark.parametrize("kinds", [PLAIN, CHATS, MIXED], ids=["plain", "chats", "mixed"])
@pytest.mark.parametrize("seed", range(6))
def test_random_traffic(seed: int, kinds: list[SamplingParams], num_tables: int) -> None:
    graphs, eager = packed_driver(num_tables), eager_driver(num_tables)
    traffic = Traffic(seed, kinds, [graphs, eager])
    for num_steps in range(1, 31):
        rows = traffic.rows()
        found, expected = graphs.step(*rows), eager.step(*rows)
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        assert found.num_tokens.tolist() == expected.num_tokens.tolist()
        assert (found.logprobs is None) == (expected.logprobs is None)
        if found.logprobs is not None and expected.logprobs is not None:
            assert found.logprobs.token_ids.tolist() == expected.logprobs.token_ids.tolist()
            np.testing.assert_allclose(found.logprobs.logprobs, expected.logprobs.logprobs)
        assert_same_state(graphs, eager)
        assert graphs.device.num_replayed == num_steps
    assert graphs.device.num_captured > 1


@pytest.mark.usefixtures("eager_steps")
def test_steps_are_launched_before_results_are_known() -> None:
    driver = packed_driver()
    texts = [[3, slot] * 9 for slot in range(NUM_SLOTS)]
    pending = []
    for slot, text in enumerate(texts):
        driver.admit(slot, text)
        pending.append(driver.launch(*(Row(s) for s in range(slot)), Row(slot, len(text))))
    found: list[list[int]] = [[] for _ in texts]
    for step in pending:
        for slot, token in enumerate(step.wait().token_ids[:, 0].tolist()):
            found[slot].append(token)
    for slot, text in enumerate(texts):
        assert found[slot] == greedy_reference(text, NUM_SLOTS - slot)
    assert driver.device.num_replayed == NUM_SLOTS


@pytest.mark.usefixtures("eager_steps")
def test_a_bitmask_restricts_its_rows_only() -> None:
    driver, prompt, allowed = packed_driver(), [5, 17, 42, 3], [4, 44]
    for slot in range(3):
        driver.admit(slot, prompt)
    rows = [Row(0, 4), Row(2, 2, samples=False), Row(1, 4, grammar=True)]
    batch = driver.batch(rows)
    batch.needs_grammar = True
    driver.runner.forward(batch)
    result = driver.runner.sample(batch, pack_bits(allowed, VOCAB)[None]).wait()
    assert result.token_ids[0] == greedy_reference(prompt, 1)
    assert result.num_tokens.tolist() == [1, 0, 1]
    assert int(result.token_ids[2, 0]) in allowed
    assert driver.device.num_replayed == 1


@pytest.mark.usefixtures("eager_steps")
def test_simple_sampling_is_inside() -> None:
    driver = packed_driver()
    for slot, params in enumerate((GREEDY, RANDOM, PENALISED, CHAT)):
        driver.admit(slot, [1, 2, 3], params)
    driver.tokens(Row(0, 3), Row(1, 3))
    assert set(driver.ops.calls) == {Sampling.TEMPERATURE}
    num_calls = len(driver.ops.calls)
    driver.tokens(Row(2, 3), Row(1))
    assert len(driver.ops.calls) == num_calls
    driver.tokens(Row(3, 3), Row(1))
    assert set(driver.ops.calls[num_calls:]) == {Sampling.FILTERED}


@pytest.mark.usefixtures("eager_steps")
def test_a_graph_with_filters_stands_in_for_one_without() -> None:
    for order, captured in (
        ([CHAT, GREEDY, RANDOM], [1, 1, 1]),
        ([RANDOM, CHAT, GREEDY], [1, 2, 2]),
    ):
        driver = packed_driver()
        for params, num_captured in zip(order, captured, strict=True):
            driver.admit(0, [1, 2, 3], params)
            driver.tokens(Row(0, 3))
            assert driver.device.num_captured == num_captured


def test_any_prompt_alone_has_a_graph_from_the_start_on() -> None:
    driver = packed_driver()
    driver.runner.capture_graphs()
    captured = driver.device.num_captured
    for params in CHATS:
        driver.admit(0, [1] * 70, params)
        driver.tokens(Row(0, 70))
    assert (driver.device.num_captured, driver.device.num_replayed) == (captured, len(CHATS))


@pytest.mark.usefixtures("eager_steps")
def test_what_graphs_cannot_do_is_eager() -> None:
    driver = packed_driver()
    driver.admit(0, [1, 2, 3], SamplingParams(temperature=0.0, prompt_logprobs=1))
    assert driver.step(Row(0, 3)).prompt_logprobs is not None
    small = GraphDriver(ops=TorchPacked())  # steps of 16 tokens, but graphs of 128
    for slot in range(3):
        small.admit(slot, [slot] * 60)
    small.tokens(*(Row(slot, 60) for slot in range(3)))
    assert not driver.device.num_replayed and not small.device.num_replayed


def test_a_size_is_captured_when_it_is_missed_often() -> None:
    driver = packed_driver()
    for step in range(1, 7):
        driver.admit(0, [1, 2, 3])
        assert driver.tokens(Row(0, 3))[0] == greedy_reference([1, 2, 3], 1)
        missed = step < packed_graphs._EAGER_STEPS
        assert driver.device.num_captured == (0 if missed else 1)
    assert driver.device.num_replayed == 7 - packed_graphs._EAGER_STEPS


def test_what_was_missed_is_captured_first_while_idle() -> None:
    driver = packed_driver()
    driver.admit(0, [1, 2, 3])
    driver.admit(1, [1, 2, 3], PENALISED)
    driver.tokens(Row(0, 3), Row(1, 3))
    assert not driver.device.num_captured
    assert driver.runner.capture_another()
    driver.tokens(Row(0), Row(1))  # a decode step, which captures its own
    driver.admit(0, [7, 8, 9])
    driver.tokens(Row(0, 3), Row(1))
    assert [graph.num_replayed for graph in driver.device.graphs] == [1, 1]


def test_one_prompt_has_graphs_from_the_start_on() -> None:
    driver = packed_driver()
    decode_only = GraphDriver()
    num_packed = driver.runner.capture_graphs() - decode_only.runner.capture_graphs()
    assert num_packed == 3  # up to the 512 tokens of a step
    captured = driver.device.num_captured
    driver.admit(0, [1] * 70)
    assert driver.tokens(Row(0, 70))[0] == greedy_reference([1] * 70, 1)
    assert (driver.device.num_captured, driver.device.num_replayed) == (captured, 1)


def test_a_larger_graph_stands_in() -> None:
    driver = packed_driver()
    driver.runner.capture_graphs()
    slots = range(NUM_SLOTS)
    for slot in slots:
        driver.admit(slot, [slot] * 60)
    driver.tokens(*(Row(slot, 60) for slot in slots))  # 300 tokens of 5 rows: none is captured
    assert not driver.device.num_replayed
    while driver.runner.capture_another():
        pass
    captured = driver.device.num_captured
    for slot in slots:
        driver.admit(slot, [slot + 1] * 60)
    tokens = driver.tokens(*(Row(slot, 60) for slot in slots))
    assert tokens == [greedy_reference([slot + 1] * 60, 1) for slot in slots]
    assert (driver.device.num_captured, driver.device.num_replayed) == (captured, 1)


def test_idle_time_ends() -> None:
    driver = packed_driver()
    most = len(token_sizes(512)) * len(row_sizes(NUM_SLOTS))
    decode_only = GraphDriver()
    while driver.runner.capture_another():
        assert driver.device.num_captured < 100
    while decode_only.runner.capture_another():
        pass
    assert driver.device.num_captured - decode_only.device.num_captured == most


def test_the_number_of_graphs_is_bounded(
    monkeypatch: pytest.MonkeyPatch, eager_steps: None
) -> None:
    monkeypatch.setattr(packed_graphs, "_MOST_GRAPHS", 2)
    driver = packed_driver()
    for num_rows in (1, 5, 2):
        for slot in range(num_rows):
            driver.admit(slot, [slot] * 60)
        driver.tokens(*(Row(slot, 60) for slot in range(num_rows)))
    assert driver.device.num_captured == 2
    assert not driver.runner._packed.capture_missed()


@pytest.mark.usefixtures("eager_steps")
def test_lack_of_memory_under_load_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    driver = packed_driver()
    driver.device.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            driver.admit(0, [1, 2, 3])
            assert driver.tokens(Row(0, 3))[0] == greedy_reference([1, 2, 3], 1)
    assert len(caplog.records) == 1
    other = packed_driver()
    other.device.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    other.admit(0, [1, 2, 3])
    with pytest.raises(RuntimeError, match="illegal"):
        other.launch(Row(0, 3)).wait()


@pytest.mark.usefixtures("eager_steps")
def test_lack_of_memory_while_idle_does_not_keep_others_waiting() -> None:
    driver = packed_driver()
    driver.admit(0, [1, 2, 3])
    driver.tokens(Row(0, 3))
    packed = driver.runner._packed
    assert packed is not None
    driver.device.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")
    assert not packed.capture_missed()
    driver.device.error = None
    assert not packed.capture_missed()  # there is no more to try: decode graphs come next
    assert driver.runner.capture_another()


@pytest.mark.parametrize("most", [1, 128, 129, 1000, 2048, 4096, 100_000])
def test_token_sizes_are_few_and_near(most: int) -> None:
    sizes = token_sizes(most)
    assert sizes == sorted(set(sizes)) and len(sizes) <= 40
    assert sizes[-1] >= min(most, 4096) and (len(sizes) == 1 or sizes[-2] < most)
    assert all(b - a <= max(128, a // 8) for a, b in pairwise(sizes))


@pytest.mark.parametrize("most", [1, 5, 8, 64, 200, 256, 1024])
def test_row_sizes_end_with_the_most(most: int) -> None:
    sizes = row_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most and sizes[0] == 1
    assert all(b <= max(32, 2 * a) for a, b in pairwise(sizes))


def test_large_models_have_graphs_of_fewer_tokens() -> None:
    with torch.device("meta"):
        small, large = nn.Linear(1 << 14, 1 << 14), nn.Linear(1 << 16, 1 << 17)
    assert 512 < token_limit(large) < 2048 < token_limit(small)  # type: ignore[arg-type]
    assert token_limit(CacheModel()) > 4096
