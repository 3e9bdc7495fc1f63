"""The answers, field by field. Keys that OpenAI requires are always there, null without a value.

`UNSET` leaves out the keys that are additions of ours or of vLLM, and those that only some
requests ask for.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class PromptTokensDetails(msgspec.Struct):
    """`cached_tokens` of the prompt came from the prefix cache."""

    cached_tokens: int = 0


class Usage(msgspec.Struct):
    """Token counts of one request, over all prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists over the tokens of a choice; the first prompt token has null entries."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One choice of a completion, or what came newly for it in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[int, Any] | None] | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """The answer of `/v1/completions`; also the chunk of its stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None


class TopLogprob(msgspec.Struct):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(msgspec.Struct):
    """The token at a position and the most likely ones there."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """The log-probabilities of the tokens of a message."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class FunctionCall(msgspec.Struct):
    """The function to call; in a stream `arguments` comes in pieces, `name` with the first."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class ToolCall(msgspec.Struct):
    """One tool call; `index` in streams only, `id` and `type` in its first piece only."""

    function: FunctionCall
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


class AssistantMessage(msgspec.Struct, kw_only=True):
    """The message of a chat choice."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One choice of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: None = None
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[int, Any] | None] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, kw_only=True):
    """What a chunk adds to a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """One choice's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """One event of a chat stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | UnsetType = UNSET


class ErrorBody(msgspec.Struct):
    """`code` is the HTTP status, `param` the field at fault."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorResponse(msgspec.Struct):
    """Errors have this shape, except below `/v1/messages`."""

    error: ErrorBody


class AnthropicError(msgspec.Struct):
    """What went wrong, in Anthropic's terms."""

    type: str
    message: str


class AnthropicErrorResponse(msgspec.Struct):
    """Errors of the endpoints that speak Anthropic's API have this shape."""

    error: AnthropicError
    type: str = "error"


class ModelCard(msgspec.Struct, kw_only=True):
    """One served model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "pagemill"
    root: str
    parent: str | None = None
    max_model_len: int | None


class ModelList(msgspec.Struct, kw_only=True):
    """The answer of `/v1/models`."""

    object: str = "list"
    data: list[ModelCard]


class TokenizeResponse(msgspec.Struct):
    """`token_strs` are the tokens' texts, when asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(msgspec.Struct):
    """The text of the tokens."""

    prompt: str


class HealthResponse(msgspec.Struct, omit_defaults=True):
    """`status` is "ok", "loading", "draining", "sleeping" or "failed".

    `detail` is the phase, or the cause.
    """

    status: str
    detail: str = ""


class VersionResponse(msgspec.Struct):
    """The server's version."""

    version: str


class LoadResponse(msgspec.Struct):
    """What is in flight now."""

    server_load: int  # HTTP requests that generate
    num_running: int
    num_waiting: int
    kv_cache_usage: float


class AbortResponse(msgspec.Struct):
    """How many requests were found and aborted."""

    aborted: int


class SleepResponse(msgspec.Struct):
    """`level` 1: weights in the host's memory, 2: dropped, 0: awake."""

    is_sleeping: bool
    level: int


class ResetResponse(msgspec.Struct):
    """Whether the prefix cache was emptied; it is not while requests use it."""

    success: bool


class EngineSummary(msgspec.Struct):
    """The engine after memory auto-fit; sizes in bytes."""

    max_model_len: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    device: str
    dtype: str
    attention: str
    quantization: str
    weight_bytes: int
    cache_bytes: int
    cache_tokens: int  # that fit, in texts of `max_model_len`


class ServerInfo(msgspec.Struct):
    """The loaded engine, the limits in force and the sampling defaults."""

    version: str
    models: list[str]
    engine: EngineSummary
    limits: dict[str, Any]
    default_params: dict[str, Any]
