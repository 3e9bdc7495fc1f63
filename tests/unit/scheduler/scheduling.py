"""Makers of what scheduler tests need."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from pagemill.config.engine import EngineConfig
from pagemill.engine.messages import AddRequest, EngineInfo
from pagemill.kvcache.hashing import hash_blocks
from pagemill.params import SamplingParams
from pagemill.scheduler.plan import ScheduledStep
from pagemill.scheduler.request import Request
from pagemill.scheduler.result import StepResult
from pagemill.scheduler.scheduler import Scheduler

BLOCK_SIZE = 4


def make_request(index: int = 0, priority: int = 0, length: int = 8) -> Request:
    return Request(
        request_id=f"r{index}",
        client_id=0,
        params=SamplingParams(),
        token_ids=array("i", range(length)),
        prompt_len=length,
        max_total=length + 8,
        seed=0,
        stop_ids=frozenset(),
        sort_key=(priority, index),
    )


def make_scheduler(
    *,
    num_blocks: int = 65,
    max_num_seqs: int = 8,
    budget: int = 64,
    max_model_len: int = 256,
    clock: Any = lambda: 0.0,
    **settings: Any,
) -> Scheduler:
    info = EngineInfo(
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
    )
    config = EngineConfig(
        model="fake",
        served_model_names=("fake",),
        device="cpu",
        dtype="float32",
        max_model_len=max_model_len,
        block_size=BLOCK_SIZE,
        **settings,
    )
    return Scheduler(config, info, clock=clock)


def make_message(
    name: str, length: int = 8, *, first_token: int = 0, priority: int = 0, **params: Any
) -> AddRequest:
    tokens = np.arange(first_token, first_token + length, dtype=np.int32)
    return AddRequest(
        request_id=name,
        client_id=1,
        token_ids=tokens.tobytes(),
        block_hashes=hash_blocks(tokens, BLOCK_SIZE, b""),
        params=SamplingParams(**{"max_tokens": 8, **params}),
        priority=priority,
    )


def sampled(step: ScheduledStep, token: int = 900) -> StepResult:
    """Every row that samples yields the same token."""
    token_ids = np.full((step.batch.num_rows, 1), token, np.int32)
    return StepResult(token_ids, step.batch.samples.astype(np.int32))


def rows_of(step: ScheduledStep | None) -> dict[str, int]:
    """Query tokens by request."""
    if step is None:
        return {}
    names = [request.request_id for request in step.requests]
    return dict(zip(names, step.batch.num_query.tolist(), strict=True))
