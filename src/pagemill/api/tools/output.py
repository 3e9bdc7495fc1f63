"""What a parser makes of a text, gathered until the next delta is sent."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from pagemill.api.responses import FunctionCall, ToolCall
from pagemill.api.tools.base import ParsedDelta


def call_id() -> str:
    """An id as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


def short_call_id() -> str:
    """Nine letters and digits: Mistral's templates refuse every other id."""
    return secrets.token_hex(5)[:9]


class Output:
    """Collects content, reasoning and tool calls.

    White space before the first content, and between calls, is kept back until more than white
    space follows. With `max_calls` further calls are left out.
    """

    def __init__(self, make_id: Callable[[], str] = call_id, max_calls: int | None = None) -> None:
        self.num_calls = 0
        self._make_id = make_id
        self._max_calls = max_calls
        self._delta = ParsedDelta()
        self._space = ""
        self._in_content = False
        self._after_reasoning = False

    def take(self) -> ParsedDelta:
        """What came since the last time."""
        delta, self._delta = self._delta, ParsedDelta()
        return delta

    def content(self, text: str) -> None:
        """Add to the content."""
        if not self._in_content:
            text = self._space + text
            visible = text.lstrip()
            if not visible:
                self._space = text
                return
            if self._after_reasoning:
                text = visible
            self._leave_space()
            self._in_content = True
        self._delta.content += text

    def reasoning(self, text: str) -> None:
        """Add to the reasoning."""
        if text:
            self._leave_space()
            self._delta.reasoning += text
            self._after_reasoning = True

    def end_reasoning(self) -> None:
        """White space that follows only sets the content apart."""
        self._leave_space()
        self._after_reasoning = True

    def begin_call(self, name: str) -> None:
        """Begin the next tool call."""
        self._leave_space()
        self.num_calls += 1
        if self._wanted:
            function = FunctionCall(name=name)
            index = self.num_calls - 1
            call = ToolCall(function, id=self._make_id(), type="function", index=index)
            self._delta.tool_calls.append(call)

    def arguments(self, text: str) -> None:
        """Add to the arguments of the call."""
        if not self._wanted or not text:
            return
        calls, index = self._delta.tool_calls, self.num_calls - 1
        if not calls or calls[-1].index != index:
            calls.append(ToolCall(FunctionCall(), index=index))
        calls[-1].function.arguments += text

    def finish(self) -> None:
        """Let go of white space that is the whole answer."""
        if not self.num_calls and not self._after_reasoning:
            self._delta.content += self._space
        self._space = ""

    @property
    def _wanted(self) -> bool:
        return self._max_calls is None or self.num_calls <= self._max_calls

    def _leave_space(self) -> None:
        self._space = ""
        self._in_content = False
