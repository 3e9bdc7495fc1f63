"""Decode steps without graphs, but by the kernels around them: the same tokens as without these."""

from __future__ import annotations

import pytest

from pagemill.device.cpu import CpuDevice
from pagemill.params import SamplingParams
from unit.runner.graph_harness import GraphDriver
from unit.runner.harness import GREEDY, NUM_SLOTS, Driver, Row, greedy_reference
from unit.runner.test_graphs import CHAT, FILTERED, ORDERS, PENALISED, RANDOM, SCORED, generate

native = pytest.importorskip("pagemill.ops.cpu._native", reason="built without a compiler")

from pagemill.ops.cpu.ops import CpuOps  # noqa: E402


def eager_driver(num_tables: int = 1) -> GraphDriver:
    return GraphDriver(num_tables, ops=CpuOps(), device=CpuDevice(1))


@pytest.mark.parametrize(
    "params",
    [
        [GREEDY] * 3,
        [RANDOM] * 3,
        [FILTERED, GREEDY, RANDOM],
        [CHAT, GREEDY, FILTERED],
        [PENALISED, RANDOM, GREEDY],
        [SCORED, GREEDY, FILTERED],
    ],
)
def test_same_tokens_as_without_kernels(params: list[SamplingParams]) -> None:
    assert generate(eager_driver(), params, ORDERS) == generate(Driver(), params, ORDERS)


@pytest.mark.parametrize("num_tables", [1, 2])
def test_greedy_rows_of_any_number(num_tables: int) -> None:
    driver = eager_driver(num_tables)
    for slot in range(NUM_SLOTS):
        driver.admit(slot, [3, slot])
    found = [[t] for row in driver.tokens(*(Row(s, 2) for s in range(NUM_SLOTS))) for t in row]
    for count in (5, 5, 3, 1, 4, 2, 5, 5):
        for slot, tokens in enumerate(driver.tokens(*(Row(slot) for slot in range(count)))):
            found[slot] += tokens
    for slot, tokens in enumerate(found):
        assert tokens == greedy_reference([3, slot], len(tokens))


def test_a_slot_that_is_taken_again_samples_as_its_new_request_asks() -> None:
    """The rows stay the same from one step to the next, their request does not."""
    driver, expected = eager_driver(), Driver()
    for each in (driver, expected):
        each.admit(0, [5, 7], GREEDY)
        each.tokens(Row(0, 2))
        each.tokens(Row(0))
    outputs = []
    for each in (driver, expected):
        each.admit(0, [5, 7], RANDOM, seed=3)
        outputs.append([each.tokens(Row(0, 2)), *(each.tokens(Row(0)) for _ in range(8))])
    assert outputs[0] == outputs[1]
