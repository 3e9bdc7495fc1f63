"""A request as the scheduler sees it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pagemill.kvcache.manager import RequestBlocks
from pagemill.params import PoolingParams, SamplingParams, StructuredOutputs


class Status(IntEnum):
    WAITING = 0
    RUNNING = 1
    FINISHED = 2


class GrammarState(Protocol):
    """What the output of one request must match. It has consumed the tokens the host has seen."""

    @property
    def ready(self) -> bool:
        """The compile is done, well or not."""
        ...

    @property
    def matcher(self) -> object:
        """Raises GrammarError when the compile failed."""
        ...

    def accept(self, token_ids: Sequence[int]) -> bool:
        """Consume sampled tokens; True when nothing may follow. Raises GrammarError."""
        ...


class Grammar(Protocol):
    """Makes the states, and the masks of those that are about to be sampled."""

    def start(self, spec: StructuredOutputs) -> GrammarState:
        """Begin compiling; does not block."""
        ...

    def bitmask(self, states: Sequence[GrammarState]) -> NDArray[np.int32]:
        """Allowed next tokens, [len(states), ceil(vocab / 32)], bit set = allowed."""
        ...

    def shutdown(self) -> None:
        """Stop compiling."""
        ...


@dataclass(eq=False, slots=True)
class Request:
    """The known text of a request and what it asks for.

    How much of the text has been computed is a matter of the slot (`scheduler/slots.py`) while
    the request runs; a waiting request has computed nothing. `token_ids` must not be read through
    a buffer that outlives the statement: it could not grow any more.
    """

    request_id: str
    client_id: int
    params: SamplingParams
    token_ids: array[int]  # prompt, then what was generated
    prompt_len: int
    max_total: int  # prompt_len + max_tokens, at most what the context and the cache hold
    seed: int  # unsigned 64 bit
    stop_ids: frozenset[int]  # EOS and stop_token_ids
    sort_key: tuple[int, int]  # smaller is more important: (priority, order of arrival)
    blocks: RequestBlocks = field(default_factory=RequestBlocks)
    deadline: float | None = None  # monotonic seconds
    lora: str | None = None
    pooling: PoolingParams | None = None
    grammar: GrammarState | None = None
    status: Status = Status.WAITING
    slot: int = -1
    num_pending: int = 0  # tokens in flight when it was preempted, and not retired yet
    num_uncached: int = 0  # tokens to compute when it was last matched; 0 = never
    num_cached_tokens: int = 0  # found in the prefix cache when it first ran
    num_prompt_logprobs: int = 0  # prompt positions already reported
    num_pooled: int = 0  # the same for vectors of tokens
    num_preemptions: int = 0
    scheduled_time: float | None = None  # when it first ran

    @property
    def wants_every_token(self) -> bool:
        """The whole prompt must be computed, whatever of it is cached."""
        by_token = self.pooling is not None and self.pooling.by_token
        return by_token or self.params.prompt_logprobs is not None
