"""Everything that crosses the process boundary between frontend and engine. Nothing else does.

Messages are msgpack arrays (msgspec), token ids and floats little-endian numpy bytes. No pickle.
Times are `time.monotonic()` seconds, which all processes of one machine share.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pagemill.config.cache import CacheGroup
from pagemill.config.pooling import PoolingConfig
from pagemill.params import PoolingParams, SamplingParams

# Upper bounds of the tokens of a step, inclusive, by which steps are counted.
STEP_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

FinishReason = Literal["stop", "length", "abort", "error"]


class AddRequest(msgspec.Struct, array_like=True, tag="add"):
    """Start a generation. `params` has `n == 1` and `max_tokens` resolved to a number.

    With `pooling` it is a request for vectors instead; `params` says only when it times out.
    """

    request_id: str
    client_id: int
    token_ids: bytes  # int32 [prompt_len], never empty
    block_hashes: bytes  # kvcache.hashing.HASH_BYTES for every full block of the prompt
    params: SamplingParams
    lora: str | None = None
    priority: int = 0  # lower runs earlier
    arrival_time: float = 0.0
    pooling: PoolingParams | None = None


class AbortRequests(msgspec.Struct, array_like=True, tag="abort"):
    """Stop these requests; each is answered by a last delta with finish_reason "abort"."""

    request_ids: list[str]


class AbortClient(msgspec.Struct, array_like=True, tag="abort_client"):
    """Stop all requests of a frontend that is gone. Nobody reads their last deltas."""

    client_id: int


class Control(msgspec.Struct, array_like=True, tag="control"):
    """Call a method of the engine's control table; answered by one `ControlResult`."""

    call_id: int
    client_id: int
    method: str
    args: list[Any] = []


class LogprobsChunk(msgspec.Struct, array_like=True, gc=False):
    """Log-probabilities of `num_positions` tokens: column 0 the token itself, then the top N.

    `token_ids` int32 and `logprobs` float32 are [num_positions, width] row-major, `ranks` int32
    [num_positions] is the chosen token's rank in the vocabulary, 1 for the most likely.
    """

    num_positions: int
    width: int
    token_ids: bytes
    logprobs: bytes
    ranks: bytes


class RequestDelta(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one step added to one request. The last one has a `finish_reason`.

    `token_ids` (int32 bytes) includes the token that stopped the generation. `prompt_logprobs`
    comes in chunks as the prompt is computed, and covers prompt positions 1, 2, … in order.
    `num_cached_tokens` and `scheduled_time` are set on the first delta of a request. `pooled` is
    float32: the vector of a request that pools, or those of its next tokens, one after the other.
    """

    request_id: str
    client_id: int = 0
    token_ids: bytes = b""
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None  # the stop_token_id that matched; None for EOS
    logprobs: LogprobsChunk | None = None
    prompt_logprobs: LogprobsChunk | None = None
    num_cached_tokens: int | None = None
    scheduled_time: float | None = None
    num_preemptions: int = 0
    error: str | None = None
    pooled: bytes = b""
    error_param: str | None = None  # the request's field that is at fault; None: it is the engine


class EngineStats(msgspec.Struct, array_like=True):
    """The engine's state after a step. Counters only grow."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # share of blocks held by requests, 0 to 1
    num_preemptions: int = 0  # counter
    prefix_cache_queries: int = 0  # counter, tokens
    prefix_cache_hits: int = 0  # counter, tokens
    num_steps: int = 0  # counter
    step_tokens: int = 0  # tokens computed by the last step
    num_draft_tokens: int = 0  # counter
    num_accepted_tokens: int = 0  # counter
    sleep_level: int = 0  # 0: awake
    num_deferred: int = 0  # of those that wait: until their grammar is compiled
    num_drafts: int = 0  # counter, rows of steps that had drafts
    accepted_by_position: list[int] = []  # counters: how often the first, second, … was accepted
    step_sizes: list[int] = []  # counters of steps by tokens, for `STEP_SIZES` and what is larger
    tokens_computed: int = 0  # counter, of all steps


class StepOutputs(msgspec.Struct, array_like=True, tag="outputs"):
    """All deltas of one step for one frontend."""

    deltas: list[RequestDelta]
    stats: EngineStats | None = None


class ControlResult(msgspec.Struct, array_like=True, tag="result"):
    """The answer to a `Control`: `error` is None when it worked."""

    call_id: int
    result: Any = None
    error: str | None = None


class EngineInfo(msgspec.Struct, array_like=True):
    """What the frontend must know of the loaded engine (after memory auto-fit)."""

    max_model_len: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    device: str = ""
    dtype: str = ""
    attention: str = ""
    quantization: str = "none"
    weight_bytes: int = 0
    cache_bytes: int = 0
    cache_groups: tuple[CacheGroup, ...] = (CacheGroup(),)
    cache_tokens: int = 0  # that fit, in texts of `max_model_len`
    pooling: PoolingConfig | None = None  # None: the model generates text


class EngineStatus(msgspec.Struct, array_like=True, tag="status"):
    """Sent while starting (`phase` for people), once when ready, at death, and as heartbeat.

    A heartbeat is a status with state "ready" and no info, sent about every second while the
    loop turns.
    """

    state: Literal["loading", "ready", "failed"]
    phase: str = ""
    detail: str = ""  # the readable cause when failed
    info: EngineInfo | None = None
    stats: EngineStats | None = None


ToEngine = AddRequest | AbortRequests | AbortClient | Control
FromEngine = StepOutputs | ControlResult | EngineStatus
