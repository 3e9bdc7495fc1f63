"""Grammar checks beside the event loop: their limits, and what they remember."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pagemill.errors import GrammarError, OverloadedError
from pagemill.frontend.grammar_checks import GrammarChecks
from pagemill.grammar import source
from pagemill.params import StructuredOutputs

BAD = [
    StructuredOutputs(json="{not json"),
    StructuredOutputs(json={"type": "x"}),
    StructuredOutputs(json={"properties": {"a": {"minimum": 5, "maximum": 1, "type": 5}}}),
    StructuredOutputs(regex="(a"),
]


class Gate:
    """Stands in for the check; opens when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.calls = 0
        monkeypatch.setattr(source, "check_grammar", self)

    def __call__(self, spec: StructuredOutputs) -> None:
        self.calls += 1
        self.open.wait()


def spec(number: int) -> StructuredOutputs:
    return StructuredOutputs(regex=f"a{{{number}}}")


@pytest.mark.parametrize("bad", BAD)
def test_bad_grammars_are_refused_each_time(bad: StructuredOutputs) -> None:
    checks = GrammarChecks()
    for _ in range(2):
        with pytest.raises(GrammarError):
            asyncio.run(checks.check(bad))


def test_a_good_grammar_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, checks = Gate(monkeypatch), GrammarChecks()
    gate.open.set()

    async def check() -> None:
        for number in (1, 2, 1, 1):
            await checks.check(spec(number))

    asyncio.run(check())
    assert gate.calls == 2


def test_a_slow_check_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, checks = Gate(monkeypatch), GrammarChecks(max_seconds=0.05)
    with pytest.raises(GrammarError, match=r"within 0\.05 seconds"):
        asyncio.run(checks.check(spec(1)))
    gate.open.set()


def test_few_checks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, checks = Gate(monkeypatch), GrammarChecks(max_waiting=3)

    async def crowd() -> list[BaseException | None]:
        tasks = [asyncio.create_task(checks.check(spec(i))) for i in range(5)]
        await asyncio.sleep(0)  # all have begun
        gate.open.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(crowd())
    assert [type(r) for r in results] == [type(None)] * 3 + [OverloadedError] * 2
    asyncio.run(checks.check(spec(9)))  # and there is room again
