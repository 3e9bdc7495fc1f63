"""`tools` and `tool_choice`: what a request allows, and the grammar that enforces a call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pagemill.api.tools.formats import ReasoningFormat, ToolFormat
from pagemill.errors import GrammarError
from pagemill.grammar.source import BLANKS_GUIDANCE, check_grammar, close_by_default
from pagemill.params import StructuredOutputs

Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class ToolChoice:
    """The tools that may be called, as name to parameters (a JSON schema), and whether one must.

    A named function is "required" with that one tool. `max_calls` None is any number.
    """

    mode: Mode = "none"
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_calls: int | None = None


def forced_calls(
    choice: ToolChoice, tool_format: ToolFormat | None, reasoning: ReasoningFormat | None
) -> StructuredOutputs:
    """The grammar of an answer that is calls only: tagged as the format has it, else a JSON list.

    `reasoning` is given when the prompt has opened the reasoning, which then comes first. Raises
    GrammarError for parameters that cannot be enforced.
    """
    tags = tool_format.forced if tool_format is not None else None
    call, separator = ("{} object {}", "\n") if tags else ("object", ", ")
    more = "" if choice.max_calls == 1 else f" ({_quoted(separator)} call)*"
    calls = f"call{more}" if tags else f'"[" call{more} "]"'
    rules = [f"start: {'think gap ' if reasoning else ''}{calls}"]
    if reasoning is not None:
        rules += [f"think[suffix={_quoted(reasoning.close)}]: /(.|\\n)*/", r"gap: /\s{0,4}/"]
    rules.append("call: " + call.format(*map(_quoted, tags or ())))
    names = list(choice.tools)
    rules.append("object: " + " | ".join(f"object{i}" for i in range(len(names))))
    for i, name in enumerate(names):
        head = f'{{"name": {json.dumps(name)}, "arguments": '
        rules.append(f'object{i}: {_quoted(head)} arguments{i} "}}"')
        rules.append(f"arguments{i}: %json {_schema_text(name, choice.tools[name])}")
    return StructuredOutputs(grammar="\n".join(rules))


def _schema_text(name: str, parameters: Mapping[str, Any]) -> str:
    schema = {"type": "object", **parameters, **BLANKS_GUIDANCE}
    try:
        check_grammar(StructuredOutputs(json=schema))
    except GrammarError as error:
        message = f"the parameters of the tool {name[:100]!r}: {error.message}"
        raise GrammarError(message, param="tools") from None
    text = json.dumps(close_by_default(schema))
    return text.replace("%", r"\u0025")  # within texts: no directive of Lark


def _quoted(text: str) -> str:
    return json.dumps(text)
