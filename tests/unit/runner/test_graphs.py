"""Decode steps through graphs yield what they yield without, and padding writes nowhere.

`graph_harness` has a device that needs no GPU for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pagemill.params import SamplingParams
from pagemill.runner.decode_step import Sampling
from pagemill.runner.graphs import padded_sizes
from unit.runner.graph_harness import GraphDriver
from unit.runner.harness import GREEDY, NUM_SLOTS, Driver, Row, greedy_reference

RANDOM = SamplingParams(temperature=0.8)
FILTERED = SamplingParams(temperature=0.8, top_p=0.7)
CHAT = SamplingParams(temperature=0.6, top_p=0.95, top_k=20)
PENALISED = SamplingParams(temperature=0.0, repetition_penalty=1.8)
SCORED = SamplingParams(temperature=0.0, logprobs=2)


def generate(driver: Driver, params: list[SamplingParams], orders: list[list[int]]) -> list[Any]:
    """Tokens of each step: prompts at once, then one token of the slots in each order."""
    for slot, own in enumerate(params):
        driver.admit(slot, [5 + slot, 7, 11], own, seed=slot)
    first = driver.tokens(*(Row(slot, 3) for slot in range(len(params))))
    return [first, *(driver.tokens(*(Row(slot) for slot in order)) for order in orders)]


ORDERS = [[0, 1, 2], [0, 1, 2], [2, 0], [1], [1], [2, 1, 0], [0, 1, 2], [0], [2, 1], [0, 1, 2]] * 2


@pytest.mark.parametrize(
    "params",
    [
        [GREEDY] * 3,
        [RANDOM] * 3,
        [GREEDY, RANDOM, GREEDY],
        [FILTERED, GREEDY, RANDOM],
        [CHAT] * 3,
        [CHAT, GREEDY, FILTERED],
        [PENALISED, RANDOM, GREEDY],
        [SCORED, GREEDY, FILTERED],
    ],
)
def test_same_tokens_as_without_graphs(params: list[SamplingParams]) -> None:
    driver = GraphDriver()
    assert generate(driver, params, ORDERS) == generate(Driver(), params, ORDERS)
    assert driver.device.num_captured > 0


@pytest.mark.parametrize("seed", range(8))
def test_random_mixtures_of_filters(seed: int) -> None:
    chance = np.random.default_rng(seed)
    params = [
        SamplingParams(
            temperature=float(chance.choice([0.0, 0.3, 0.9, 1.5])),
            top_k=int(chance.choice([0, 1, 4, 20, 1000])),
            top_p=float(chance.choice([0.2, 0.9, 1.0])),
            min_p=float(chance.choice([0.0, 0.1, 0.6])),
        )
        for _ in range(NUM_SLOTS)
    ]
    orders = [chance.permutation(NUM_SLOTS)[: chance.integers(1, NUM_SLOTS + 1)] for _ in range(25)]
    steps = [order.tolist() for order in orders]
    driver = GraphDriver()
    assert generate(driver, params, steps) == generate(Driver(), params, steps)
    assert driver.device.num_replayed == len(driver.ops.calls) - driver.device.num_captured
    assert Sampling.FILTERED in driver.ops.calls


@pytest.mark.parametrize("num_tables", [1, 2])
def test_greedy_rows_of_any_number(num_tables: int) -> None:
    driver = GraphDriver(num_tables)
    for slot in range(NUM_SLOTS):
        driver.admit(slot, [3, slot])
    found = [[t] for row in driver.tokens(*(Row(s, 2) for s in range(NUM_SLOTS))) for t in row]
    for count in (5, 3, 1, 4, 2, 5, 5):
        for slot, tokens in enumerate(driver.tokens(*(Row(slot) for slot in range(count)))):
            found[slot] += tokens
    for slot, tokens in enumerate(found):
        assert tokens == greedy_reference([3, slot], len(tokens))


def test_simple_sampling_is_inside() -> None:
    driver = GraphDriver()
    generate(driver, [GREEDY, RANDOM, FILTERED, PENALISED], [[0]])
    assert set(driver.ops.calls) == {Sampling.GREEDY}
    driver.tokens(Row(0), Row(1))
    assert driver.ops.calls[-1] is Sampling.TEMPERATURE
    driver.tokens(Row(2), Row(1), Row(0))
    assert driver.ops.calls[-1] is Sampling.FILTERED
    num_calls = len(driver.ops.calls)
    driver.tokens(Row(2), Row(3))
    assert len(driver.ops.calls) == num_calls


def test_filters_of_greedy_rows_cost_nothing() -> None:
    driver = GraphDriver()
    generate(driver, [SamplingParams(temperature=0.0, top_p=0.9, top_k=3, min_p=0.1)], [[0]] * 3)
    assert set(driver.ops.calls) == {Sampling.GREEDY}


def test_each_size_is_captured_once() -> None:
    driver = GraphDriver()
    generate(driver, [GREEDY] * 4, [[0, 1, 2], [2, 1, 0], [0, 1, 2, 3], [0], [0]])
    assert driver.device.num_captured == 2  # for four rows, and for one
    first = GraphDriver()
    assert first.runner.capture_graphs() == first.device.num_captured == 2 * len(Sampling)
    larger = GraphDriver(max_num_seqs=16)  # captures filters for few rows only
    assert larger.runner.capture_graphs() == larger.device.num_captured == 3 * len(Sampling) - 1


def test_the_rest_is_captured_while_idle() -> None:
    driver = GraphDriver()
    driver.runner.capture_graphs()
    captured = driver.device.num_captured
    first_call = len(driver.ops.calls)
    while driver.runner.capture_another():
        captured += 1
        assert driver.ops.calls[first_call] is Sampling.FILTERED
        assert driver.device.num_captured == captured
    assert captured == len(Sampling) * len(padded_sizes(NUM_SLOTS))
    generate(driver, [GREEDY] * 4, [[0, 1, 2], [0], [1, 0]])
    assert driver.device.num_captured == captured


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"),
        RuntimeError("CUDA error: out of memory"),  # as of instantiating a graph
    ],
)
def test_lack_of_memory_while_idle_ends_nothing(error: RuntimeError) -> None:
    driver = GraphDriver()
    driver.device.error = error
    assert not driver.runner.capture_another()
    driver.device.error = None
    generate(driver, [GREEDY], [[0]] * 3)
    driver.device.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"):
        driver.runner.capture_another()


@pytest.mark.parametrize("captured", [False, True])
def test_without_memory_for_a_graph_steps_go_on(captured: bool) -> None:
    """By larger graphs, if there are any, else without."""
    driver, params = GraphDriver(), [GREEDY, FILTERED, RANDOM]
    if captured:
        driver.runner.capture_graphs()
    driver.device.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")
    assert generate(driver, params, ORDERS) == generate(Driver(), params, ORDERS)
    assert (driver.device.num_replayed > 0) == captured


def test_graphs_can_be_turned_off() -> None:
    driver = GraphDriver(cuda_graphs=False)
    generate(driver, [GREEDY], [[0]] * 3)
    assert driver.runner.capture_graphs() == driver.device.num_captured == 0
    assert not driver.runner.capture_another()


@pytest.mark.parametrize("most", [1, 5, 8, 64, 100, 256, 1000])
def test_padding_is_little(most: int) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most and sizes[0] == 1
    for rows in range(1, most + 1):
        size = next(s for s in sizes if s >= rows)
        assert size - rows <= max(15, rows // 4)
