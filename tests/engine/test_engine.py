"""The engine's edges: every request is answered, whatever is wrong with it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.fake_device import MASK_WIDTH, VOCAB_SIZE, FakeExecutor
from engine.trials import TurnsGrammar
from pagemill.config.engine import EngineConfig
from pagemill.engine.engine import Engine
from pagemill.engine.messages import STEP_SIZES, AddRequest, RequestDelta
from pagemill.errors import GrammarError
from pagemill.kvcache.hashing import hash_blocks
from pagemill.params import SamplingParams, StructuredOutputs
from pagemill.scheduler.request import Grammar

REGEX = StructuredOutputs(regex="a")


class BadState:
    """A grammar that fails: when it compiles, or at the first token."""

    def __init__(self, *, compiles: bool) -> None:
        self._compiles = compiles
        self.ready = True

    @property
    def matcher(self) -> object:
        if not self._compiles:
            raise GrammarError("the grammar cannot be enforced: no", "structured_outputs")
        return self

    def accept(self, token_ids: Sequence[int]) -> bool:
        raise GrammarError("the grammar could not be followed: no", "structured_outputs")


class BadGrammar:
    def __init__(self, *, compiles: bool) -> None:
        self._compiles = compiles

    def start(self, spec: StructuredOutputs) -> BadState:
        return BadState(compiles=self._compiles)

    def bitmask(self, states: Sequence[BadState]) -> NDArray[np.int32]:
        return np.full((len(states), MASK_WIDTH), -1, np.int32)

    def shutdown(self) -> None:
        pass


def _config(**settings: object) -> EngineConfig:
    fixed = {"model": "fake", "served_model_names": ("fake",), "device": "cpu"}
    return EngineConfig(**{**fixed, "dtype": "float32", "max_model_len": 256, **settings})


def _engine(grammar: Grammar | None = None, **settings: object) -> Engine:
    return Engine(_config(**settings), FakeExecutor(), grammar=grammar)


def _message(name: str, prompt: Sequence[int] = range(9), **params: object) -> AddRequest:
    tokens = np.array(prompt, np.int32)
    return AddRequest(
        request_id=name,
        client_id=3,
        token_ids=tokens.tobytes(),
        block_hashes=hash_blocks(tokens, 4, b""),
        params=SamplingParams(**{"max_tokens": 6, **params}),
    )


def _run(engine: Engine) -> list[RequestDelta]:
    deltas = []
    for _ in range(200):
        if not engine.has_work():
            return deltas
        deltas += engine.step()
    raise AssertionError("the engine does not come to an end")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (_message("bad", []), "at least one token"),
        (_message("bad", [1] * 300), "context length"),
        (_message("good"), "under way already"),
        (_message("bad", structured_outputs=REGEX), "structured output"),
    ],
)
def test_a_bad_request_gets_one_delta_and_disturbs_nobody(message: AddRequest, error: str) -> None:
    engine = _engine()
    engine.add_request(_message("good"))
    engine.add_request(message)
    first, *others = _run(engine)
    assert (first.request_id, first.client_id) == (message.request_id, 3)
    assert first.finish_reason == "error" and error in (first.error or "")
    assert others[-1].request_id == "good" and others[-1].finish_reason == "length"


def test_tokens_that_are_no_whole_numbers_are_refused() -> None:
    engine = _engine()
    engine.add_request(AddRequest("bad", 0, b"\0\0\0", b"", SamplingParams()))
    assert [delta.finish_reason for delta in _run(engine)] == ["error"]


@pytest.mark.parametrize("hashes", [b"", b"too short", bytes(160)])
def test_hashes_that_do_not_fit_only_cost_the_cache(hashes: bytes) -> None:
    engine = _engine()
    for name in ("a", "b"):
        message = _message(name)
        message.block_hashes = hashes
        engine.add_request(message)
    assert [d.finish_reason for d in _run(engine) if d.finish_reason] == ["length", "length"]
    assert engine.stats().prefix_cache_hits == 0


@pytest.mark.parametrize("num_steps", range(8))
def test_an_aborted_request_gets_a_last_delta(num_steps: int) -> None:
    engine = _engine()
    engine.add_request(_message("a", max_tokens=20))
    deltas = [delta for _ in range(num_steps) for delta in engine.step()]
    engine.abort(["a", "never heard of"])
    deltas += _run(engine)
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["abort"]
    assert deltas[-1].finish_reason == "abort"
    assert engine.stats().kv_cache_usage == 0


def test_a_finished_name_may_be_used_again() -> None:
    engine = _engine()
    for _ in range(2):
        engine.add_request(_message("a"))
        assert _run(engine)[-1].finish_reason == "length"


@pytest.mark.parametrize("compiles", [False, True])
def test_a_grammar_that_fails_ends_its_request_only(compiles: bool) -> None:
    engine = _engine(BadGrammar(compiles=compiles))
    engine.add_request(_message("bad", structured_outputs=REGEX))
    engine.add_request(_message("good"))
    last = {delta.request_id: delta for delta in _run(engine)}
    assert last["bad"].finish_reason == "error" and "the grammar" in (last["bad"].error or "")
    assert last["bad"].error_param == "structured_outputs"
    assert last["good"].finish_reason == "length"


def test_outputs_do_not_depend_on_overlap() -> None:
    outputs = []
    for overlap in (False, True):
        engine = _engine(TurnsGrammar(random.Random(0)), overlap=overlap)
        rng = random.Random(1)
        for index in range(20):
            prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 20))]
            grammar = REGEX if index % 4 == 0 else None
            engine.add_request(_message(str(index), prompt, structured_outputs=grammar))
        text: dict[str, bytes] = {}
        for delta in _run(engine):
            text[delta.request_id] = text.get(delta.request_id, b"") + delta.token_ids
        outputs.append(text)
    assert len(outputs[0]) == 20
    assert outputs[0] == outputs[1]


def test_with_overlap_a_step_is_in_flight_between_calls() -> None:
    overlapping, serial = _engine(overlap=True), _engine(overlap=False)
    for engine in (overlapping, serial):
        engine.add_request(_message("a"))
    assert overlapping.step() == [] and len(serial.step()) == 1
    assert len(overlapping.step()) == 1


def test_control_runs_between_steps() -> None:
    engine = _engine()
    engine.add_request(_message("a"))
    engine.step()
    assert engine.control("profile", [1]) == ["profile", 1]
    assert engine.has_work()
    [delta] = engine.step()
    assert len(delta.token_ids) == 4


def test_resetting_the_prefix_cache_forgets_running_requests_too() -> None:
    engine = _engine()
    engine.add_request(_message("a", range(20), max_tokens=20))
    for _ in range(4):
        engine.step()
    assert engine.control("reset_prefix_cache", []) is True
    _run(engine)
    engine.add_request(_message("b", range(20)))
    first = next(delta for delta in _run(engine) if delta.num_cached_tokens is not None)
    assert first.num_cached_tokens == 0
    engine.add_request(_message("c", range(20)))
    assert _run(engine)[0].num_cached_tokens == 16


def test_stats_count_what_happens() -> None:
    engine = _engine()
    for name in ("a", "b"):
        engine.add_request(_message(name, range(12)))
    assert engine.stats().num_waiting == 2
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steps) == (2, 0, 1)
    assert stats.step_tokens == 12 + 4  # the second shares two blocks
    assert stats.tokens_computed == 16
    assert stats.step_sizes[STEP_SIZES.index(16)] == sum(stats.step_sizes) == 1
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (24, 8)
    assert stats.kv_cache_usage == pytest.approx(4 / 63)
    _run(engine)
    assert engine.stats().num_running == 0


def test_many_streams() -> None:
    device = FakeExecutor(num_blocks=4001, max_num_seqs=2000, max_num_batched_tokens=4096)
    engine = Engine(_config(max_num_queued_reqs=0), device)
    for index in range(2000):
        engine.add_request(_message(str(index), [index % VOCAB_SIZE, index // VOCAB_SIZE]))
    finished = [delta for delta in _run(engine) if delta.finish_reason]
    assert len(finished) == 2000
    assert engine.stats().kv_cache_usage == 0
