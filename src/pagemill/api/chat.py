"""`POST /v1/chat/completions`: messages in, an assistant's message out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.chat_generation import ChoiceState, prepare, states
from pagemill.api.chunk_template import MARK, text_events
from pagemill.api.context import ServerContext
from pagemill.api.direct import Encode
from pagemill.api.generation import Generation
from pagemill.api.intake import Intake, take_in
from pagemill.api.logprobs import chat_logprobs, prompt_logprobs
from pagemill.api.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ToolCall,
    Usage,
)
from pagemill.api.schema import ChatRequest
from pagemill.api.sse import event
from pagemill.api.streaming import ChunkUsage, answer
from pagemill.api.tools.base import ParsedDelta, PlainText
from pagemill.frontend.outputs import ChoiceUpdate, TokenLogprobs

_decoder = msgspec.json.Decoder(ChatRequest)


async def create(context: ServerContext, request: Request) -> Response:
    """A chat completion, whole or as a stream.

    Raises RequestError, OverloadedError and EngineDeadError before the first token.
    """
    intake = await take_in(context, request, _decoder)
    generation, form = await prepare(intake, "chatcmpl")
    choices = states(intake.body, generation, form)
    return await answer(request, intake, generation, _Call(intake, generation, choices))


def _echo_of(body: ChatRequest) -> str:
    """What `echo` puts before the answer: the last message, if it is the assistant's too."""
    last = body.messages[-1]
    if not body.echo or last["role"] != "assistant":
        return ""
    content: Any = last.get("content")
    return content if isinstance(content, str) else ""


@dataclass
class _Collected:
    """The parts of a choice of a whole answer."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, update: ChoiceUpdate, delta: ParsedDelta) -> None:
        self.content.append(delta.content)
        self.reasoning.append(delta.reasoning)
        for call in delta.tool_calls:
            self._add_tool_call(call)
        self.logprobs += update.logprobs or []
        self.token_ids += update.token_ids
        self.stop_reason = update.stop_reason

    def _add_tool_call(self, piece: ToolCall) -> None:
        if piece.id is UNSET:
            self.tool_calls[-1].function.arguments += piece.function.arguments
        else:
            self.tool_calls.append(ToolCall(piece.function, piece.id, piece.type))

    def message(self) -> AssistantMessage:
        content, reasoning = "".join(self.content), "".join(self.reasoning)
        message = AssistantMessage(content=content)
        if reasoning:
            message.reasoning = message.reasoning_content = reasoning
        if self.tool_calls:
            message.tool_calls = self.tool_calls
            message.content = content or None
        return message


class _Call:
    """One request's way from updates to chunks, or to one answer."""

    def __init__(
        self, intake: Intake[ChatRequest], generation: Generation, choices: list[ChoiceState]
    ) -> None:
        self._body = intake.body
        self._context = intake.context
        self._generation = generation
        self._model = intake.model
        self._created = int(intake.context.clock.wall())
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._echo = _echo_of(intake.body)
        self._states = choices
        self._collected = [_Collected(content=[self._echo]) for _ in choices]

    def add(self, update: ChoiceUpdate) -> None:
        state, parts = self._states[update.index], self._collected[update.index]
        parts.add(update, state.parse(update))
        parts.finish_reason = state.finish_reason(update)
        if self._body.prompt_logprobs is not None and update.prompt_logprobs is not None:
            self._prompt_logprobs = update.prompt_logprobs

    def result(self) -> ChatCompletion:
        whole = ChatCompletion(
            id=self._generation.response_id,
            created=self._created,
            model=self._model,
            choices=[self._choice(i, parts) for i, parts in enumerate(self._collected)],
            usage=self._generation.usage(),
            system_fingerprint=self._context.fingerprint,
        )
        if self._body.return_token_ids:
            whole.prompt_token_ids = self._generation.prompts[0].token_ids
        if self._prompt_logprobs is not None:
            whole.prompt_logprobs = prompt_logprobs(self._prompt_logprobs)
        return whole

    def _choice(self, index: int, parts: _Collected) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=parts.message(),
            logprobs=self._logprobs(parts.logprobs),
            finish_reason=parts.finish_reason,
            stop_reason=parts.stop_reason,
            token_ids=parts.token_ids if self._body.return_token_ids else UNSET,
        )

    def _logprobs(self, positions: list[TokenLogprobs] | None) -> ChatLogprobs | None:
        if not self._body.logprobs or positions is None:
            return None
        as_ids = bool(self._body.return_tokens_as_token_ids)
        return chat_logprobs(positions, self._body.top_logprobs or 0, as_ids)

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        return self._chunk([], usage)

    def _chunk(self, choices: list[ChatChunkChoice], usage: ChunkUsage) -> ChatChunk:
        return ChatChunk(
            id=self._generation.response_id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._context.fingerprint,
        )

    def events_of(self, update: ChoiceUpdate, usage: ChunkUsage) -> bytes:
        state = self._states[update.index]
        opening = b""
        if not state.started:
            state.started = True
            opening = self._opening(update.index, usage)
        parsed = state.parse(update)
        choice = ChatChunkChoice(
            index=update.index,
            delta=_delta(parsed),
            logprobs=self._logprobs(update.logprobs),
            finish_reason=state.finish_reason(update),
        )
        if update.finish_reason is not None and update.stop_reason is not None:
            choice.stop_reason = update.stop_reason
        if self._body.return_token_ids:
            choice.token_ids = update.token_ids
        return opening + event(self._chunk([choice], usage))

    def direct_events(self, usage: ChunkUsage) -> Encode:
        body, (state,) = self._body, self._states
        general = partial(self.events_of, usage=usage)
        plain = isinstance(state.parser, PlainText)
        if not plain or body.logprobs or body.return_token_ids:
            return general
        choice = ChatChunkChoice(index=0, delta=ChatDelta(content=MARK))
        return text_events(self._chunk([choice], usage), general)

    def _opening(self, index: int, usage: ChunkUsage) -> bytes:
        """The first chunk of a choice: its role, and the echo when there is one."""
        choice = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=self._echo))
        chunk = self._chunk([choice], usage)
        if self._body.return_token_ids:
            chunk.prompt_token_ids = self._generation.prompts[0].token_ids
        return event(chunk)


def _delta(parsed: ParsedDelta) -> ChatDelta:
    delta = ChatDelta()
    if parsed.content:
        delta.content = parsed.content
    if parsed.reasoning:
        delta.reasoning = delta.reasoning_content = parsed.reasoning
    if parsed.tool_calls:
        delta.tool_calls = parsed.tool_calls
    return delta
