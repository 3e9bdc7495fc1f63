"""The requests the server understands, field by field, under OpenAI's and vLLM's names.

A field is in one of three states, and `docs/api.md` says which: it works, it is accepted without
effect (`NO_EFFECT`, reported in a response header), or it is refused unless it has its neutral
value (`REFUSED`). A field that is not here is refused by name. `null` means "not given".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from pagemill.params import StructuredOutputs

MAX_INT64 = 2**63 - 1

Int64 = Annotated[int, msgspec.Meta(ge=-MAX_INT64 - 1, le=MAX_INT64)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Text = str | list[str | int | list[int]]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries besides text: usage at the end, or in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The `json_schema` member of a `response_format`."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's way to ask for structured output; `structural_tag` is vLLM's addition."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None


class GenerationFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields that completions and chat completions share."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    logit_bias: dict[TokenId, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    timeout: float | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: Int64 | None = None
    request_id: str | None = None
    cache_salt: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    session_id: Any = None
    guided_decoding_backend: Any = None

    best_of: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    early_stopping: Any = None
    logits_processors: Any = None
    logprob_token_ids: Any = None
    repetition_detection: Any = None
    watermarking: Any = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    vllm_xargs: Any = None
    return_weight_versions: Any = None
    routed_experts_prompt_start: Any = None
    mm_payload: Any = None
    moderation: Any = None


class CompletionRequest(GenerationFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/completions`. `prompt` is a text, a list of texts, token ids, or lists of those."""

    prompt: Text
    logprobs: int | None = None

    suffix: str | None = None

    prompt_embeds: Any = None


class FunctionTool(msgspec.Struct, kw_only=True):
    """A function the model may call."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """One entry of `tools`; only functions are known."""

    type: Literal["function"]
    function: FunctionTool


class ChatRequest(GenerationFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: Annotated[str, msgspec.Meta(max_length=32)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None

    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: int | None = None

    verbosity: Any = None
    prediction: Any = None

    chat_template: Any = None
    mm_processor_kwargs: Any = None
    media_io_kwargs: Any = None
    return_prompt_text: Any = None
    modalities: Any = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /tokenize`: either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None

    chat_template: Any = None
    mm_processor_kwargs: Any = None
    media_io_kwargs: Any = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


class AbortRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /abort`: request ids (`X-Request-Id`) or the ids of responses."""

    request_ids: list[str]


@dataclass(frozen=True)
class Refusal:
    """Why a field is refused, and the values that mean the same as leaving it out."""

    reason: str
    neutral: tuple[Any, ...] = ()


NO_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "session_id",
        "guided_decoding_backend",
        "spaces_between_special_tokens",
        "verbosity",
        "prediction",
        "cache_control",
        "context_management",
        "inference_geo",
        "diagnostics",
        "speed",
        "user_profile_id",
        "workspace_id",
        "include",
        "max_tool_calls",
        "background_options",
        "access_programs",
    }
)

_TEMPLATE = Refusal("a request cannot bring its own template; set it with the server's settings")
_MEDIA = Refusal("only text is accepted", ({},))
_UNKNOWN_TO_US = Refusal("is not supported by this server")

REFUSED: dict[str, Refusal] = {
    "best_of": Refusal("is not supported; ask for n choices and pick one", (1,)),
    "use_beam_search": Refusal("beam search is not supported", (False,)),
    "length_penalty": Refusal("beam search is not supported", (1, 1.0)),
    "early_stopping": Refusal("beam search is not supported", (False,)),
    "prompt_embeds": Refusal("embeddings are not accepted as prompts", ([],)),
    "logits_processors": Refusal("a request cannot bring its own code", ([],)),
    "chat_template": _TEMPLATE,
    "mm_processor_kwargs": _MEDIA,
    "media_io_kwargs": _MEDIA,
    "modalities": Refusal("only text is produced", (["text"],)),
    "audio": Refusal("only text is produced"),
    "functions": Refusal("is deprecated; use tools", ([],)),
    "function_call": Refusal("is deprecated; use tool_choice", ("none", "auto")),
    "web_search_options": Refusal("this server does not search the web"),
    "mcp_servers": Refusal("this server calls no other servers", ([],)),
    "container": Refusal("this server runs no code"),
    "truncation": Refusal("an input that does not fit is refused, not cut", ("disabled",)),
    "conversation": Refusal("is not supported; use previous_response_id"),
    "image": Refusal("only text is produced"),
    "moderation": Refusal("this server does not moderate"),
    "logprob_token_ids": _UNKNOWN_TO_US,
    "repetition_detection": _UNKNOWN_TO_US,
    "watermarking": Refusal("is not supported by this server", (False,)),
    "kv_transfer_params": _UNKNOWN_TO_US,
    "ec_transfer_params": _UNKNOWN_TO_US,
    "vllm_xargs": _UNKNOWN_TO_US,
    "return_weight_versions": Refusal("is not supported by this server", (False,)),
    "routed_experts_prompt_start": _UNKNOWN_TO_US,
    "mm_payload": _UNKNOWN_TO_US,
    "return_prompt_text": Refusal("is not supported by this server", (False,)),
}
