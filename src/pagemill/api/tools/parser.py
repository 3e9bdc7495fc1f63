"""The streaming parser of all formats: one reader over a source, driven piece by piece."""

from __future__ import annotations

from pagemill.api.tools.base import ParsedDelta
from pagemill.api.tools.calls import Calls, Schemas
from pagemill.api.tools.formats import ReasoningFormat, ToolFormat
from pagemill.api.tools.harmony import read_harmony
from pagemill.api.tools.output import Output, call_id, short_call_id
from pagemill.api.tools.source import Reading, Source


class StreamingParser:
    """An `OutputParser` for one choice.

    `tools` holds the parameters of the request's tools by name. `in_reasoning` says that the
    prompt has opened the reasoning already. Text that only looks like a call becomes content;
    nothing raises.
    """

    def __init__(
        self,
        tools: Schemas,
        tool_format: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        *,
        in_reasoning: bool = False,
        max_calls: int | None = None,
    ) -> None:
        short = tool_format is not None and tool_format.short_ids
        self._source = Source()
        self._output = Output(short_call_id if short else call_id, max_calls)
        self._calls = Calls(self._source, self._output, tools)
        self._reading = self._read(tool_format, reasoning, in_reasoning)

    def push(self, text: str) -> ParsedDelta:
        """Take the next piece of text; may hold back what is still ambiguous."""
        self._source.feed(text)
        return self._advance()

    def finish(self) -> ParsedDelta:
        """The text has ended: release what was held back."""
        self._source.end()
        return self._advance()

    def _advance(self) -> ParsedDelta:
        next(self._reading, None)
        if self._source.ended:
            self._output.finish()
        return self._output.take()

    def _read(
        self, row: ToolFormat | None, reasoning: ReasoningFormat | None, in_reasoning: bool
    ) -> Reading[None]:
        if row is not None and row.channels:
            yield from read_harmony(self._calls)
            return
        if reasoning is not None:
            yield from self._read_reasoning(reasoning, in_reasoning)
        if row is None:
            yield from self._source.rest(self._output.content)
            return
        if row.bare:
            yield from self._read_bare(row)
        if row.openers:
            yield from self._read_marked(row)
        yield from self._source.rest(self._output.content)

    def _read_reasoning(self, row: ReasoningFormat, opened: bool) -> Reading[None]:
        source, output = self._source, self._output
        space = yield from source.space()
        if (yield from source.literal(row.open)) is None and not opened:
            output.content(space)
            return
        yield from source.space()
        yield from source.stream_until((row.close,), output.reasoning)
        output.end_reasoning()

    def _read_bare(self, row: ToolFormat) -> Reading[None]:
        """Calls at the very beginning, which only their own form tells from content."""
        self._output.content((yield from self._source.space()))
        self._calls.bare = True
        yield from self._calls.attempt(row.body.read(self._calls, ""))
        self._calls.bare = False

    def _read_marked(self, row: ToolFormat) -> Reading[None]:
        output = self._output
        markers = (*row.openers, *row.wrappers)
        while True:
            marker = yield from self._source.stream_until(markers, output.content)
            if marker is None:
                return
            if marker in row.wrappers:
                continue
            done = yield from self._read_calls(row, marker)
            if not done:
                output.content(marker)

    def _read_calls(self, row: ToolFormat, marker: str) -> Reading[bool]:
        """Whether a call was begun; what follows a broken one is content again."""
        before = self._output.num_calls
        yield from self._calls.attempt(row.body.read(self._calls, marker))
        return self._output.num_calls > before
