"""From a message to a request: the engine's own checks, which never rely on the frontend's."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from pagemill.config.cache import CacheLayout
from pagemill.config.engine import EngineConfig
from pagemill.engine.messages import AddRequest, EngineInfo
from pagemill.errors import ContextTooLong, InvalidParams
from pagemill.kvcache.hashing import split_hashes
from pagemill.kvcache.manager import RequestBlocks
from pagemill.params import SamplingParams
from pagemill.scheduler.request import Grammar, GrammarState, Request

_TOKEN_BYTES = 4
_SEED_MASK = 2**64 - 1


@dataclass(slots=True)
class Intake:
    """Makes requests. Two with the same content differ in their place in the order of arrival."""

    config: EngineConfig
    info: EngineInfo
    layout: CacheLayout
    grammar: Grammar | None
    clock: Callable[[], float]
    _arrivals: count[int] = field(default_factory=count)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.config.seed)

    def read(self, message: AddRequest) -> Request:
        """Raises RequestError when the request can never be served."""
        token_ids = _read_tokens(message.token_ids)
        prompt_len = len(token_ids)
        pools = self._check_kind(message)
        max_total = prompt_len + 1 if pools else self._max_total(prompt_len, message.params)
        params = message.params
        seed = self._random.getrandbits(64) if params.seed is None else params.seed & _SEED_MASK
        by_priority = self.config.scheduling_policy == "priority"
        return Request(
            request_id=message.request_id,
            client_id=message.client_id,
            params=params,
            token_ids=token_ids,
            prompt_len=prompt_len,
            max_total=max_total,
            seed=seed,
            stop_ids=_stop_ids(params),
            sort_key=(message.priority if by_priority else 0, next(self._arrivals)),
            blocks=RequestBlocks(hashes=self._hashes(message.block_hashes, prompt_len)),
            deadline=self._deadline(message),
            lora=message.lora,
            pooling=message.pooling,
            grammar=self._start_grammar(params),
        )

    def _check_kind(self, message: AddRequest) -> bool:
        """Whether the request pools, as all requests to this engine must or none may."""
        pools = self.info.pooling is not None
        if pools != (message.pooling is not None):
            does = "makes vectors, no text" if pools else "generates text, no vectors"
            raise InvalidParams(f"this engine {does}")
        num_tokens = len(message.token_ids) // _TOKEN_BYTES
        held = self.layout.longest_text()
        limit = self.info.max_model_len if held is None else min(self.info.max_model_len, held)
        if pools and num_tokens > limit:
            raise ContextTooLong(
                f"the text has {num_tokens} tokens; at most {limit} fit",
                param="input",
            )
        return pools

    def _max_total(self, prompt_len: int, params: SamplingParams) -> int:
        """The length at which a generation ends, at most what context and cache can hold."""
        limit = self.info.max_model_len
        if prompt_len >= limit:
            raise ContextTooLong(
                f"the prompt has {prompt_len} tokens; the context length of {limit} leaves no room "
                "for an answer",
                param="prompt",
            )
        held = self.layout.longest_text()
        if held is not None:
            if prompt_len >= held:
                raise ContextTooLong(
                    f"the prompt has {prompt_len} tokens; the KV cache holds {held}", param="prompt"
                )
            limit = min(limit, held)
        wanted = limit if params.max_tokens is None else prompt_len + max(params.max_tokens, 1)
        return min(wanted, limit)

    def _hashes(self, data: bytes, prompt_len: int) -> list[bytes]:
        """Hashes that do not fit the prompt are ignored: the request is then not cached."""
        hashes = split_hashes(data) if self.config.prefix_caching else []
        return hashes if len(hashes) == prompt_len // self.layout.block_size else []

    def _deadline(self, message: AddRequest) -> float | None:
        if message.params.timeout is None:
            return None
        return (message.arrival_time or self.clock()) + message.params.timeout

    def _start_grammar(self, params: SamplingParams) -> GrammarState | None:
        if params.structured_outputs is None:
            return None
        if self.grammar is None:
            raise InvalidParams(
                "this engine cannot enforce structured output", param="structured_outputs"
            )
        return self.grammar.start(params.structured_outputs)


def _read_tokens(data: bytes) -> array[int]:
    if not data or len(data) % _TOKEN_BYTES:
        raise InvalidParams("a prompt needs at least one token of 4 bytes", param="prompt")
    return array("i", data)


def _stop_ids(params: SamplingParams) -> frozenset[int]:
    eos = () if params.ignore_eos else params.eos_token_ids
    return frozenset((*eos, *(params.stop_token_ids or ())))
