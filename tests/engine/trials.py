"""Random trials of scheduler, KV cache and engine loop on the fake device.

A trial draws an engine and requests from its seed, feeds and disturbs the engine at random, and
compares what every caller was told with `expected_output`, which knows nothing of batches.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.fake_device import MASK_WIDTH, VOCAB_SIZE, FakeExecutor, next_token
from pagemill.config.cache import CacheGroup
from pagemill.config.engine import EngineConfig
from pagemill.engine.engine import Engine
from pagemill.engine.messages import AddRequest, LogprobsChunk, RequestDelta
from pagemill.kvcache.hashing import hash_blocks
from pagemill.params import SamplingParams, StructuredOutputs
from pagemill.scheduler.batch import Batch

EOS = 7
GRAMMAR_END = 24
HASH_KEY = "00ff" * 8
MULTIPLES = [sum(1 << token for token in range(0, VOCAB_SIZE, step)) for step in (2, 3)]
MAX_STEPS = 3000
# One table; one with a window; and tables that keep different parts of the text.
GROUPS = (
    *3 * [(CacheGroup(),)],
    (CacheGroup(5),),
    (CacheGroup(9),),
    (CacheGroup(), CacheGroup(5)),
    (CacheGroup(), CacheGroup(9, 2)),
    (CacheGroup(0, 2), CacheGroup(9), CacheGroup(5)),
)


class TurnsState:
    """Multiples of two and of three in turn, and nothing after `GRAMMAR_END`.

    Compiling takes a few looks.
    """

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._num_accepted = 0
        self.ended = False

    @property
    def ready(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    @property
    def matcher(self) -> object:
        return self

    @property
    def allowed(self) -> int:
        assert not self.ended
        return MULTIPLES[self._num_accepted % 2]

    def accept(self, token_ids: Sequence[int]) -> bool:
        for token in token_ids:
            assert self.allowed >> token & 1
            self._num_accepted += 1
            self.ended = token == GRAMMAR_END
        return self.ended


class TurnsGrammar:
    """The engine's `Grammar`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def start(self, spec: StructuredOutputs) -> TurnsState:
        return TurnsState(self._rng.randrange(4))

    def bitmask(self, states: Sequence[TurnsState]) -> NDArray[np.int32]:
        data = b"".join(state.allowed.to_bytes(MASK_WIDTH * 4, "little") for state in states)
        return np.frombuffer(data, "<i4").reshape(-1, MASK_WIDTH)

    def shutdown(self) -> None:
        pass


def expected_output(
    prompt: list[int], params: SamplingParams, max_total: int, windows: list[int]
) -> tuple[list[int], str, int | None]:
    """The generation of one request alone: tokens, finish reason and stop reason."""
    text = list(prompt)
    constrained = params.structured_outputs is not None
    while True:
        allowed = MULTIPLES[(len(text) - len(prompt)) % 2] if constrained else None
        text.append(next_token(text, windows, allowed))
        token, num_generated = text[-1], len(text) - len(prompt)
        if num_generated >= params.min_tokens:
            if token in params.eos_token_ids and not params.ignore_eos:
                return text[len(prompt) :], "stop", None
            if token in (params.stop_token_ids or ()):
                return text[len(prompt) :], "stop", token
        if constrained and token == GRAMMAR_END:
            return text[len(prompt) :], "stop", None
        if len(text) >= max_total:
            return text[len(prompt) :], "length", None


@dataclass
class Caller:
    """One request's view from outside."""

    prompt: list[int]
    params: SamplingParams
    priority: int
    cancelled: bool = False
    tokens: list[int] = field(default_factory=list)
    deltas: list[RequestDelta] = field(default_factory=list)

    @property
    def last(self) -> RequestDelta:
        return self.deltas[-1]

    @property
    def finished(self) -> bool:
        return bool(self.deltas) and self.last.finish_reason is not None


class Trial:
    """One engine, its requests and its disturbances."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.seed = seed
        self.now = 1.0
        self.groups = rng.choice(GROUPS)
        self.windows = [g.window for g in self.groups for _ in range(g.num_tables)]
        self.block_size = rng.choice([2, 4, 4, 8])
        num_drafts = rng.choice([0, 0, 1, 3])
        self.device = FakeExecutor(
            num_blocks=1 + rng.choice([40, 48, 64, 160]) // self.block_size * len(self.windows),
            block_size=self.block_size,
            max_num_seqs=rng.randint(1, 6),
            max_num_batched_tokens=rng.randint(3, 24),
            max_model_len=rng.choice([48, 64]),
            num_drafts=num_drafts,
            groups=self.groups,
            seed=seed,
        )
        self.config = EngineConfig(
            model="fake",
            served_model_names=("fake",),
            device="cpu",
            dtype="float32",
            max_model_len=self.device.info.max_model_len,
            max_num_batched_tokens=self.device.info.max_num_batched_tokens,
            block_size=self.block_size,
            prefix_caching=rng.random() < 0.9,
            overlap=rng.random() < 0.8,
            scheduling_policy=rng.choice(["fcfs", "priority"]),
            prefill_share=rng.choice([1.0, 0.5, 0.25]),
            num_speculative_tokens=num_drafts,
            hash_key=HASH_KEY,
            seed=seed,
        )
        self.engine = Engine(
            self.config,
            self.device,
            grammar=TurnsGrammar(rng),
            clock=lambda: self.now,
        )
        self.callers: dict[str, Caller] = {}
        self._shared = self._random_tokens(20)
        self._unsent = rng.randint(1, 8)

    def run(self) -> Counter[str]:
        """Play the trial and check it. Returns how often the interesting things happened."""
        num_steps = 0
        while self._unsent or self.engine.has_work():
            self._disturb()
            for delta in self.engine.step():
                self._receive(delta)
            num_steps += 1
            assert num_steps < MAX_STEPS, "the engine makes no progress"
        for caller in self.callers.values():
            self._check(caller)
        self._check_launches()
        self._check_nothing_leaked()
        return self._coverage(num_steps)

    def _disturb(self) -> None:
        rng = self.rng
        self.now += 0.01
        if self._unsent and rng.random() < 0.5:
            self._unsent -= 1
            self._submit(self._prompt(), self._params())
        if rng.random() < 0.3:
            self.device.stream.run_some(rng)
        open_ids = [name for name, caller in self.callers.items() if not caller.finished]
        if open_ids and rng.random() < 0.01:
            name = rng.choice(open_ids)
            self.callers[name].cancelled = True
            self.engine.abort([name, "unknown"])
        if rng.random() < 0.01:
            self.engine.control("reset_prefix_cache", [])

    def _random_tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(VOCAB_SIZE) for _ in range(count)]

    def _prompt(self) -> list[int]:
        """New text, a shared beginning, a known prompt, or an earlier conversation that goes on."""
        rng = self.rng
        done = [caller for caller in self.callers.values() if caller.finished]
        if done and rng.random() < 0.3:
            earlier = rng.choice(done)
            text = (earlier.prompt + earlier.tokens)[:32]
            return text + self._random_tokens(rng.randint(1, 3))
        if self.callers and rng.random() < 0.15:
            return rng.choice(list(self.callers.values())).prompt
        first = rng.choice([0, 0, self.block_size])  # the same text elsewhere is not the same
        shared = self._shared[first : first + rng.choice([0, 4, 8, 16, 20])]
        return shared + self._random_tokens(rng.randint(1, 9))

    def _params(self) -> SamplingParams:
        rng = self.rng
        max_tokens = rng.randint(1, 16)
        constrained = rng.random() < 0.15
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, 0, rng.randint(0, max_tokens)]),
            stop_token_ids=rng.choice([None, [EOS, 11], [3]]),
            ignore_eos=rng.random() < 0.3,
            eos_token_ids=[EOS],
            logprobs=2 if rng.random() < 0.1 else None,
            prompt_logprobs=1 if rng.random() < 0.1 else None,
            structured_outputs=StructuredOutputs(regex="turns") if constrained else None,
            timeout=0.2 if rng.random() < 0.03 else None,
        )

    def _submit(self, prompt: list[int], params: SamplingParams) -> None:
        name = f"r{len(self.callers)}"
        self.callers[name] = Caller(prompt, params, self.rng.randrange(3))
        tokens = np.array(prompt, np.int32)
        message = AddRequest(
            request_id=name,
            client_id=len(self.callers),
            token_ids=tokens.tobytes(),
            block_hashes=hash_blocks(tokens, self.block_size, bytes.fromhex(HASH_KEY)),
            params=params,
            priority=self.callers[name].priority,
        )
        self.engine.add_request(message)

    def _receive(self, delta: RequestDelta) -> None:
        caller = self.callers[delta.request_id]
        assert not caller.finished, "a delta after the last one"
        assert delta.finish_reason or delta.token_ids or delta.prompt_logprobs, "an empty delta"
        caller.deltas.append(delta)
        caller.tokens += np.frombuffer(delta.token_ids, "<i4").tolist()

    def _check(self, caller: Caller) -> None:
        max_total = min(len(caller.prompt) + caller.params.max_tokens, self._longest())
        tokens, finish_reason, stop_reason = expected_output(
            caller.prompt, caller.params, max_total, self.windows
        )
        if caller.last.finish_reason == "abort":
            assert caller.cancelled or caller.last.error is not None
            assert caller.tokens == tokens[: len(caller.tokens)]
        else:
            assert caller.tokens == tokens, (self.seed, caller)
            assert caller.last.finish_reason == finish_reason, (self.seed, caller)
            assert caller.last.stop_reason == stop_reason, (self.seed, caller)
            _check_logprobs(caller)

    def _longest(self) -> int:
        """The longest text that context and cache can hold."""
        info, size = self.device.info, self.block_size
        ahead = max(info.max_num_batched_tokens, 2 * (1 + self.config.num_speculative_tokens))
        columns = 0
        while columns * size < info.max_model_len:
            needed = columns + 1
            live = [min(needed, -(-(w + ahead) // size) + 2) if w else needed for w in self.windows]
            if sum(live) > info.num_blocks - 1:
                break
            columns = needed
        return min(info.max_model_len, columns * size)

    def _check_launches(self) -> None:
        """No request that was certain to finish was launched again."""
        launches: Counter[str] = Counter()
        owner: dict[int, str] = {}
        for batch in self.device.batches:
            owner.update((admission.slot, admission.request_id) for admission in batch.admitted)
            launches.update(owner[slot] for slot in batch.slots[batch.samples].tolist())
        for name, caller in self.callers.items():
            if caller.last.finish_reason == "length":
                assert launches[name] <= len(caller.tokens), (self.seed, name)

    def _check_nothing_leaked(self) -> None:
        stats = self.engine.stats()
        assert stats.num_running == stats.num_waiting == 0
        assert stats.kv_cache_usage == 0, "blocks are still held"
        assert self.engine.scheduler.slots.num_free == self.device.info.max_num_seqs

    def _coverage(self, num_steps: int) -> Counter[str]:
        stats = self.engine.stats()
        reasons = Counter(f"ended by {c.last.finish_reason}" for c in self.callers.values())
        batches = self.device.batches
        return reasons + Counter(
            {
                "steps": num_steps,
                "preemptions": stats.num_preemptions,
                "cached tokens": stats.prefix_cache_hits,
                "accepted drafts": stats.num_accepted_tokens,
                "rejected drafts": stats.num_draft_tokens - stats.num_accepted_tokens,
                "timeouts": sum("timed out" in (c.last.error or "") for c in self.callers.values()),
                "mixed batches": sum(int(b.resident.any() > b.resident.all()) for b in batches),
                "grammar batches": sum(b.needs_grammar for b in batches),
                "dropped blocks": sum(
                    int((a.block_ids == 0).sum()) for b in batches for a in b.admitted
                ),
                "one token left": sum(_one_token_left(b) for b in batches),
            }
        )


def _one_token_left(batch: Batch) -> int:
    """Rows that wait for a single known token and yield one."""
    rows = ~batch.resident & batch.samples & (batch.num_query == 1) & (batch.start > 0)
    return int(rows.sum())


def _check_logprobs(caller: Caller) -> None:
    if caller.params.logprobs is not None:
        chunks = [delta.logprobs for delta in caller.deltas if delta.token_ids]
        assert _chosen(chunks, 1 + caller.params.logprobs) == caller.tokens
    if caller.params.prompt_logprobs is not None:
        chunks = [d.prompt_logprobs for d in caller.deltas if d.prompt_logprobs is not None]
        assert _chosen(chunks, 1 + caller.params.prompt_logprobs) == caller.prompt[1:]


def _chosen(chunks: list[LogprobsChunk], width: int) -> list[int]:
    """The tokens that the chunks are about, after a look at their form."""
    chosen = []
    for chunk in chunks:
        assert chunk.width == width
        ids = np.frombuffer(chunk.token_ids, "<i4").reshape(chunk.num_positions, width)
        values = np.frombuffer(chunk.logprobs, "<f4").reshape(ids.shape)
        assert (values == -ids).all()
        assert np.frombuffer(chunk.ranks, "<i4").tolist() == (ids[:, 0] + 1).tolist()
        chosen += ids[:, 0].tolist()
    return chosen
