"""A request as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from pagemill.params import SamplingParams


class Status(IntEnum):
    WAITING = 0
    RUNNING = 1
    FINISHED = 2


@dataclass(eq=False, slots=True)
class Request:
    """Tokens that should be computed, and how many have been.

    `num_computed` and `num_pending` are optimistic: `schedule()` raises them as if every draft
    were accepted, `update()` takes back what was not. `num_pending` counts tokens that the
    device has or will have sampled but the host has not seen.
    """

    request_id: str
    client_id: int
    params: SamplingParams
    token_ids: list[int]
    prompt_len: int
    max_total: int  # prompt_len + max_tokens, at most the context length
    seed: int
    block_hashes: list[bytes] = field(default_factory=list)
    priority: int = 0
    arrival_time: float = 0.0
    arrival_index: int = 0
    deadline: float | None = None  # monotonic seconds
    lora: str | None = None
    grammar: Any = None  # grammar.matcher state, opaque here
    status: Status = Status.WAITING
    slot: int = -1
    block_ids: list[int] = field(default_factory=list)
    num_hashed: int = 0  # blocks committed to the prefix cache
    num_computed: int = 0
    num_pending: int = 0
    steps_in_flight: int = 0
    epoch: int = 0  # raised by every preemption: results of an older epoch need no rollback
    resident: bool = False  # the next input token is in the slot
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    scheduled_time: float | None = None

    @property
    def num_to_compute(self) -> int:
        """Query tokens still to be scheduled, drafts not counted."""
        return len(self.token_ids) + self.num_pending - self.num_computed
