"""From updates to Anthropic's answers: blocks of thinking, text and tool use."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pagemill.api.anthropic.schema import (
    BlockDelta,
    BlockStart,
    BlockStop,
    ContentBlock,
    Event,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
)
from pagemill.api.chat_generation import ChoiceState
from pagemill.api.errors import ANTHROPIC_PATH, error_body, error_content
from pagemill.api.generation import Generation
from pagemill.api.responses import ToolCall
from pagemill.api.sse import StreamProtocol, event
from pagemill.frontend.outputs import ChoiceUpdate

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "abort": "pause_turn",
}


def named(data: Event) -> bytes:
    """An event under its own name."""
    return event(data, str(data.__struct_config__.tag))


def _error_event(error: Exception) -> bytes:
    return event(error_content(error_body(error), ANTHROPIC_PATH), "error")


ANTHROPIC_STREAM = StreamProtocol(error=_error_event, done=b"", keep_alive=named(Ping()))


class MessageWriter:
    """One answer, collected or as events."""

    def __init__(self, model: str, generation: Generation, state: ChoiceState) -> None:
        self._model = model
        self._generation = generation
        self._state = state
        self._blocks: list[ContentBlock] = []
        self._pieces: list[str] = []
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of the stream, those of one step together."""
        started = False
        async with aclosing(self._generation.updates()) as stream:
            async for updates in stream:
                opening = b"" if started else self._opening()
                started = True
                yield opening + b"".join(map(self.events_of, updates))
        reason = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        closing: list[Event] = [MessageDelta(delta=reason, usage=self._usage()), MessageStop()]
        yield b"".join(map(named, [*self._close(), *closing]))

    def events_of(self, update: ChoiceUpdate) -> bytes:
        """The events of one update, after the opening ones."""
        return b"".join(map(named, self._take(update)))

    def add(self, update: ChoiceUpdate) -> None:
        """Collect an update."""
        self._take(update)

    def result(self) -> Message:
        """The whole answer, after the last update."""
        self._close()
        return self._message(self._blocks)

    def _opening(self) -> bytes:
        return named(MessageStart(message=self._message([]))) + named(Ping())

    def _message(self, content: list[ContentBlock]) -> Message:
        return Message(
            id=self._generation.response_id,
            model=self._model,
            content=content,
            stop_reason=self._stop_reason,
            stop_sequence=self._stop_sequence,
            usage=self._usage(),
        )

    def _usage(self) -> MessageUsage:
        scope = self._generation.scope
        cached = min(scope.cached_tokens, scope.prompt_tokens)
        return MessageUsage(
            input_tokens=scope.prompt_tokens - cached,
            output_tokens=scope.completion_tokens,
            cache_read_input_tokens=cached,
        )

    def _take(self, update: ChoiceUpdate) -> list[Event]:
        """Take an update in; the events that say so."""
        delta = self._state.parse(update)
        reason = self._state.finish_reason(update)
        if reason is not None:
            self._stop_reason = _STOP_REASONS.get(reason, reason)
            if isinstance(update.stop_reason, str):
                self._stop_reason, self._stop_sequence = "stop_sequence", update.stop_reason
        events: list[Event] = []
        if delta.reasoning:
            block = ContentBlock(type="thinking", thinking="", signature="")
            events += self._continue(block, "thinking_delta", "thinking", delta.reasoning)
        if delta.content:
            block = ContentBlock(type="text", text="")
            events += self._continue(block, "text_delta", "text", delta.content)
        for call in delta.tool_calls:
            events += self._take_call(call)
        return events

    def _take_call(self, call: ToolCall) -> list[Event]:
        events: list[Event] = []
        if isinstance(call.id, str):
            name = call.function.name
            block = ContentBlock(type="tool_use", id=call.id, name=name, input={})
            events += [*self._close(), self._open(block)]
        if call.function.arguments:
            events.append(self._piece("input_json_delta", "partial_json", call.function.arguments))
        return events

    def _continue(self, block: ContentBlock, kind: str, key: str, text: str) -> list[Event]:
        """Add to the block that is open if it is of this type, else to a new one."""
        events: list[Event] = []
        if not self._pieces or self._blocks[-1].type != block.type:
            events += [*self._close(), self._open(block)]
        return [*events, self._piece(kind, key, text)]

    def _open(self, block: ContentBlock) -> Event:
        self._blocks.append(block)
        self._pieces = [""]
        return BlockStart(index=len(self._blocks) - 1, content_block=block)

    def _piece(self, kind: str, key: str, text: str) -> Event:
        self._pieces.append(text)
        return BlockDelta(index=len(self._blocks) - 1, delta={"type": kind, key: text})

    def _close(self) -> list[Event]:
        if not self._pieces:
            return []
        block, text = self._blocks[-1], "".join(self._pieces)
        self._pieces = []
        match block.type:
            case "thinking":
                block.thinking = text
            case "text":
                block.text = text
            case "tool_use":
                block.input = parsed_input(text)
        return [BlockStop(index=len(self._blocks) - 1)]


def parsed_input(text: str) -> dict[str, Any]:
    """The arguments of a call; those cut off by `max_tokens` come as {"INVALID_JSON": text}."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}
