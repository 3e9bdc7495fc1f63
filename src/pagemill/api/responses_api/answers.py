"""From updates to a response: items of reasoning, text and function calls, with their events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from pagemill.api.chat_generation import ChoiceState
from pagemill.api.errors import error_body
from pagemill.api.generation import Generation
from pagemill.api.responses import ToolCall
from pagemill.api.responses_api.schema import (
    InputDetails,
    Item,
    OutputDetails,
    Part,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
    StreamEvent,
)
from pagemill.api.sse import event
from pagemill.frontend.outputs import ChoiceUpdate

_STATUS = {"length": "incomplete", "abort": "cancelled"}
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class ResponseWriter:
    """One response, collected or as events. `on_change` is told when it begins and ends."""

    def __init__(
        self,
        response: ResponseObject,
        generation: Generation,
        state: ChoiceState,
        on_change: Callable[[ResponseObject], None],
    ) -> None:
        self.response = response
        self._generation = generation
        self._state = state
        self._on_change = on_change
        self._pieces: list[str] = []
        self._open: Item | None = None
        self._sequence = 0

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of the stream, those of one step together."""
        try:
            async with aclosing(self._generation.updates()) as stream:
                async for updates in stream:
                    opening = b"" if self._sequence else self._opening()
                    yield opening + b"".join(map(self.events_of, updates))
        finally:
            if self._sequence:
                self.end_unfinished()
        name = "completed" if self.response.status == "completed" else "incomplete"
        yield self._event(f"response.{name}", response=self.response)

    def events_of(self, update: ChoiceUpdate) -> bytes:
        """The events of one update, after the opening ones."""
        return b"".join(self._take(update))

    def error_event(self, error: Exception) -> bytes:
        """The event of an error, and the failed response."""
        body = error_body(error)
        self.fail_with(error)
        problem = self._event("error", code=body.type, message=body.message, param=body.param)
        return problem + self._event("response.failed", response=self.response)

    def fail_with(self, error: Exception) -> None:
        """The response ends with an error."""
        self.response.status = "failed"
        self.response.error = ResponseFailure("server_error", error_body(error).message)
        self._on_change(self.response)

    def add(self, update: ChoiceUpdate) -> None:
        """Collect an update."""
        self.response.id = self._generation.response_id
        self._take(update)

    def result(self) -> ResponseObject:
        """The whole response, after the last update."""
        return self.response

    def _opening(self) -> bytes:
        self.response.id = self._generation.response_id
        self._on_change(self.response)
        created = self._event("response.created", response=self.response)
        return created + self._event("response.in_progress", response=self.response)

    def end_unfinished(self) -> None:
        """The generation has ended without saying how: it was cancelled."""
        if self.response.status == "in_progress":
            self.response.status = "cancelled"
            self._on_change(self.response)

    def _event(self, kind: str, **members: Any) -> bytes:
        made = StreamEvent(type=kind, sequence_number=self._sequence, **members)
        self._sequence += 1
        return event(made, kind)

    def _take(self, update: ChoiceUpdate) -> list[bytes]:
        """Take an update in; the events that say so."""
        delta = self._state.parse(update)
        events: list[bytes] = []
        if delta.reasoning:
            events += self._add_text("reasoning", delta.reasoning)
        if delta.content:
            events += self._add_text("message", delta.content)
        for call in delta.tool_calls:
            events += self._add_call(call)
        if update.finish_reason is not None:
            status = _STATUS.get(update.finish_reason, "completed")
            events += self._close("completed" if status == "completed" else "incomplete")
            self._finish(status)
        return events

    def _finish(self, status: str) -> None:
        response, scope = self.response, self._generation.scope
        response.status = status
        if status == "incomplete":
            response.incomplete_details = {"reason": "max_output_tokens"}
        response.usage = ResponseUsage(
            input_tokens=scope.prompt_tokens,
            input_tokens_details=InputDetails(scope.cached_tokens),
            output_tokens=scope.completion_tokens,
            output_tokens_details=OutputDetails(),
            total_tokens=scope.prompt_tokens + scope.completion_tokens,
        )
        self._on_change(response)

    def _add_text(self, kind: str, text: str) -> list[bytes]:
        events = [] if self._is_open(kind) else self._begin_text(kind)
        self._pieces.append(text)
        name = f"response.{_PARTS[kind]}.delta"
        return [*events, self._text_event(name, delta=text)]

    def _begin_text(self, kind: str) -> list[bytes]:
        item = self._new_item(kind)
        item.content = []
        if kind == "message":
            item.role = "assistant"
        else:
            item.summary = []
        events = [*self._close(), self._begin(item)]
        part = _part(kind, "")
        return [*events, self._at("response.content_part.added", content_index=0, part=part)]

    def _add_call(self, call: ToolCall) -> list[bytes]:
        events: list[bytes] = []
        if isinstance(call.id, str):
            item = self._new_item("function_call")
            item.call_id, item.name, item.arguments = call.id, call.function.name, ""
            events += [*self._close(), self._begin(item)]
        if call.function.arguments:
            self._pieces.append(call.function.arguments)
            name = "response.function_call_arguments.delta"
            events.append(self._at(name, delta=call.function.arguments))
        return events

    def _new_item(self, kind: str) -> Item:
        stem = self._generation.scope.request_id
        return Item(type=kind, id=f"{_PREFIXES[kind]}-{stem}-{len(self.response.output)}")

    def _is_open(self, kind: str) -> bool:
        return self._open is not None and self._open.type == kind

    def _begin(self, item: Item) -> bytes:
        index = len(self.response.output)
        self.response.output.append(item)
        self._open, self._pieces = item, []
        return self._event("response.output_item.added", output_index=index, item=item)

    def _close(self, status: str = "completed") -> list[bytes]:
        """End the item that is open."""
        item, text = self._open, "".join(self._pieces)
        if item is None:
            return []
        item.status = status
        if item.type == "function_call":
            item.arguments = text
            name = "response.function_call_arguments.done"
            events = [self._at(name, name=item.name, arguments=text)]
        else:
            part = _part(item.type, text)
            item.content = [part]
            events = [
                self._text_event(f"response.{part.type}.done", text=text),
                self._at("response.content_part.done", content_index=0, part=part),
            ]
        index = len(self.response.output) - 1
        events.append(self._event("response.output_item.done", output_index=index, item=item))
        self._open = None
        return events

    def _text_event(self, kind: str, **members: Any) -> bytes:
        if self._is_open("message"):
            members["logprobs"] = []
        return self._at(kind, content_index=0, **members)

    def _at(self, kind: str, **members: Any) -> bytes:
        """An event of the item that is open."""
        assert self._open is not None
        index = len(self.response.output) - 1
        return self._event(kind, item_id=self._open.id, output_index=index, **members)


def _part(kind: str, text: str) -> Part:
    part = Part(type=_PARTS[kind], text=text)
    if kind == "message":
        part.annotations, part.logprobs = [], []
    return part
