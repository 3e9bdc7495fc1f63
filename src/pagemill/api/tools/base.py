"""The seam between generated text and chat messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pagemill.api.responses import ToolCall


@dataclass(slots=True)
class ParsedDelta:
    """What a piece of text adds to a message. Tool calls are in the form that streams send."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


class OutputParser(Protocol):
    """Splits the text of one choice; fed piece by piece, in streams and in whole answers."""

    def push(self, text: str) -> ParsedDelta:
        """Take the next piece of text; may hold back what is still ambiguous."""
        ...

    def finish(self) -> ParsedDelta:
        """The text has ended: release what was held back."""
        ...


class PlainText:
    """For models without a known format: all text is content."""

    def push(self, text: str) -> ParsedDelta:
        return ParsedDelta(content=text)

    def finish(self) -> ParsedDelta:
        return ParsedDelta()
