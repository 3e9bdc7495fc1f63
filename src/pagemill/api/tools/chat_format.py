"""How the model at hand writes calls and reasoning, and what follows for a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pagemill.api.tools.base import OutputParser, PlainText
from pagemill.api.tools.choice import ToolChoice, forced_calls
from pagemill.api.tools.formats import (
    FORMATS_BY_NAME,
    PLAIN_JSON,
    REASONING_ALIASES,
    REASONING_BY_NAME,
    TOOL_ALIASES,
    ReasoningFormat,
    ToolFormat,
    detect_format,
    detect_reasoning,
)
from pagemill.api.tools.parser import StreamingParser
from pagemill.errors import ConfigError
from pagemill.params import StructuredOutputs

F = TypeVar("F")


@dataclass(frozen=True)
class ChatFormat:
    """The formats of one model; None where it has none."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None

    @staticmethod
    def of(template: str, tools: str = "auto", reasoning: str = "auto") -> ChatFormat:
        """From the chat template's text, unless named; "none" turns one off. Raises ConfigError."""
        tools, reasoning = (
            TOOL_ALIASES.get(tools, tools),
            REASONING_ALIASES.get(reasoning, reasoning),
        )
        return ChatFormat(
            _chosen("tool call parser", tools, FORMATS_BY_NAME, detect_format(template)),
            _chosen("reasoning parser", reasoning, REASONING_BY_NAME, detect_reasoning(template)),
        )

    def for_request(self, choice: ToolChoice, prompt_text: str | None) -> RequestFormat:
        """What holds for one request and its rendered prompt."""
        reasoning = self.reasoning
        opened = reasoning is not None and (prompt_text or "").rstrip().endswith(reasoning.open)
        return RequestFormat(self, choice, in_reasoning=opened)


@dataclass(frozen=True)
class RequestFormat:
    """The formats of one request. `in_reasoning`: its prompt has opened the reasoning."""

    model: ChatFormat
    choice: ToolChoice
    in_reasoning: bool = False

    @property
    def tools(self) -> ToolFormat | None:
        """The format that the answer will be in."""
        own = self.model.tools
        if own is not None and own.channels and self.choice.mode != "required":
            return own
        if self.choice.mode == "required":
            return own if own is not None and own.forced is not None else PLAIN_JSON
        return None if self.choice.mode == "none" else own

    @property
    def needs_control_tokens(self) -> bool:
        """Whether the parser looks for tokens that are usually left out of the text."""
        rows = (self.tools, self.model.reasoning)
        return any(row is not None and row.control_tokens for row in rows)

    def grammar(self) -> StructuredOutputs | None:
        """What enforces a call where one is required. Raises GrammarError."""
        if self.choice.mode != "required":
            return None
        reasoning = self.model.reasoning if self.in_reasoning else None
        return forced_calls(self.choice, self.model.tools, reasoning)

    def parser(self) -> OutputParser:
        """A parser for one choice."""
        row, reasoning = self.tools, self.model.reasoning
        if row is None and reasoning is None:
            return PlainText()
        return StreamingParser(
            self.choice.tools,
            row,
            reasoning,
            in_reasoning=self.in_reasoning,
            max_calls=self.choice.max_calls,
        )


def _chosen(what: str, name: str, known: Mapping[str, F], detected: F | None) -> F | None:
    if name == "auto":
        return detected
    if name == "none":
        return None
    if name not in known:
        raise ConfigError(f"unknown {what} {name!r}; known are: {', '.join(sorted(known))}")
    return known[name]
