"""The requests and answers of `/v1/messages`, under Anthropic's names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

Blocks = str | list[dict[str, Any]]


class AnthropicTool(msgspec.Struct, kw_only=True):
    """A function the model may call; tools that Anthropic runs itself are refused."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class AnthropicToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether tools may, must or must not be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True):
    """Whether the model is to think first, for templates that can be told."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class OutputFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON schema that the answer must match."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Form of the answer, and how much to think."""

    format: OutputFormat | None = None
    effort: Annotated[str, msgspec.Meta(max_length=32)] | None = None


class PromptFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What makes the prompt."""

    model: str | None = None
    messages: list[dict[str, Any]]
    system: Blocks | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    cache_control: Any = None
    context_management: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None

    mcp_servers: Any = None


class MessagesRequest(PromptFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages`."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    metadata: Any = None
    service_tier: Any = None
    inference_geo: Any = None
    diagnostics: Any = None

    container: Any = None


class CountTokensRequest(PromptFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages/count_tokens`."""


class TokenCount(msgspec.Struct):
    """The answer of `/v1/messages/count_tokens`."""

    input_tokens: int


class MessageUsage(msgspec.Struct, kw_only=True):
    """`input_tokens` leaves out those that came from the prefix cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class ContentBlock(msgspec.Struct, kw_only=True):
    """A part of the answer; `type` is "text", "thinking" or "tool_use"."""

    type: str
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    signature: str | UnsetType = UNSET
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    input: dict[str, Any] | UnsetType = UNSET


class Message(msgspec.Struct, kw_only=True):
    """The answer of `/v1/messages`; without content at the start of a stream."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class MessageStart(msgspec.Struct, kw_only=True, tag="message_start"):
    """A stream begins."""

    message: Message


class BlockStart(msgspec.Struct, kw_only=True, tag="content_block_start"):
    """A part of the answer begins."""

    index: int
    content_block: ContentBlock


class BlockDelta(msgspec.Struct, kw_only=True, tag="content_block_delta"):
    """A piece of the part."""

    index: int
    delta: dict[str, str]


class BlockStop(msgspec.Struct, kw_only=True, tag="content_block_stop"):
    """The part is complete."""

    index: int


class MessageDelta(msgspec.Struct, kw_only=True, tag="message_delta"):
    """Why the answer ended, and the counts."""

    delta: dict[str, str | None]
    usage: MessageUsage


class MessageStop(msgspec.Struct, tag="message_stop"):
    """The stream ends."""


class Ping(msgspec.Struct, tag="ping"):
    """Keeps the connection."""


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping
