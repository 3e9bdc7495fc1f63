"""The table of formats in which open models write tool calls and reasoning.

A model's format shows in its chat template, which prints earlier calls the way the model writes
them. The rows are in the order of detection: specific marks first.
"""

# ruff: noqa: RUF001 (the bars in DeepSeek's tokens are full-width on purpose)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pagemill.api.tools.calls import Calls
from pagemill.api.tools.json_calls import JsonBody, NamedBody
from pagemill.api.tools.pythonic import PythonicBody
from pagemill.api.tools.source import Reading
from pagemill.api.tools.tagged_calls import TaggedBody


class CallBody(Protocol):
    """Reads what follows an opener."""

    def read(self, calls: Calls, opener: str) -> Reading[bool]:
        """Read the calls after an opener; False where the text is something else."""
        ...


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One way to write calls.

    A template with one of `marks` is of this format. Calls follow one of `openers`; `wrappers`
    around several calls mean nothing. With `bare` the message may also begin with calls that no
    opener marks. `control_tokens` are the openers' and wrappers' kind where tokenizers leave
    them out of texts unless told not to. `forced` is what stands before and after each call when
    a grammar demands calls; None where a plain JSON list is demanded instead.
    """

    name: str
    marks: tuple[str, ...]
    body: CallBody
    openers: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    bare: bool = False
    control_tokens: bool = False
    short_ids: bool = False
    channels: bool = False
    forced: tuple[str, str] | None = None


def _functions(close: str) -> TaggedBody:
    """`<function=f><parameter=a>…</parameter></function>`, with `close` after it."""
    return TaggedBody(
        key_open="<parameter=",
        key_close=">",
        value_open="",
        value_close="</parameter>",
        ends=("</function>", close),
        opening="<function=",
        name_end=">",
        close=close,
    )


PLAIN_JSON = ToolFormat(name="json", marks=(), body=JsonBody(), bare=True)

TOOL_FORMATS = (
    ToolFormat(
        name="harmony",
        marks=("<|channel|>",),
        body=JsonBody(),
        control_tokens=True,
        channels=True,
    ),
    ToolFormat(
        name="deepseek",
        marks=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        body=NamedBody(("<｜tool▁sep｜>",), close="<｜tool▁call▁end｜>"),
        openers=("<｜tool▁call▁begin｜>",),
        wrappers=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        control_tokens=True,
    ),
    ToolFormat(
        name="kimi",
        marks=("<|tool_calls_section_begin|>",),
        body=NamedBody(("<|tool_call_argument_begin|>",), close="<|tool_call_end|>"),
        openers=("<|tool_call_begin|>",),
        wrappers=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        control_tokens=True,
    ),
    ToolFormat(
        name="mistral",
        marks=("[TOOL_CALLS]",),
        body=NamedBody(("[ARGS]", "[CALL_ID]"), id_separator="[CALL_ID]"),
        openers=("[TOOL_CALLS]",),
        control_tokens=True,
        short_ids=True,
    ),
    ToolFormat(
        name="glm",
        marks=("<arg_key>",),
        body=TaggedBody(
            key_open="<arg_key>",
            key_close="</arg_key>",
            value_open="<arg_value>",
            value_close="</arg_value>",
            ends=("</tool_call>",),
        ),
        openers=("<tool_call>",),
    ),
    ToolFormat(
        name="minimax",
        marks=("<minimax:tool_call>", "<invoke name="),
        body=TaggedBody(
            key_open='<parameter name="',
            key_close='">',
            value_open="",
            value_close="</parameter>",
            ends=("</invoke>",),
            opening='<invoke name="',
            name_end='">',
        ),
        openers=('<invoke name="',),
        wrappers=("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    ToolFormat(
        name="seed_oss",
        marks=("<seed:tool_call>",),
        body=_functions("</seed:tool_call>"),
        openers=("<seed:tool_call>", "<function="),
    ),
    ToolFormat(
        name="qwen3_coder",
        marks=("<function=",),
        body=_functions("</tool_call>"),
        openers=("<tool_call>", "<function="),
    ),
    ToolFormat(
        name="phi4",
        marks=("<|tool_call|>",),
        body=JsonBody(close="<|/tool_call|>"),
        openers=("<|tool_call|>",),
        control_tokens=True,
    ),
    ToolFormat(
        name="hermes",
        marks=("<tool_call>",),
        body=JsonBody(close="</tool_call>"),
        openers=("<tool_call>",),
        forced=("<tool_call>\n", "\n</tool_call>"),
    ),
    ToolFormat(
        name="lfm2",
        marks=("<|tool_call_start|>",),
        body=PythonicBody(close="<|tool_call_end|>"),
        openers=("<|tool_call_start|>",),
        bare=True,
        control_tokens=True,
    ),
    ToolFormat(
        name="pythonic",
        marks=("<|python_start|>", "func_name1(params_name1", "func_name1(params"),
        body=PythonicBody(close="<|python_end|>"),
        openers=("<|python_start|>",),
        bare=True,
        control_tokens=True,
    ),
    ToolFormat(
        name="llama3_json",
        marks=("<|python_tag|>", '"parameters": dictionary of argument name'),
        body=JsonBody(),
        openers=("<|python_tag|>",),
        bare=True,
        control_tokens=True,
    ),
)

FORMATS_BY_NAME: Mapping[str, ToolFormat] = {f.name: f for f in (*TOOL_FORMATS, PLAIN_JSON)}

# vLLM's names for the same formats, so that its command lines can be kept.
TOOL_ALIASES: Mapping[str, str] = {
    "openai": "harmony",
    "deepseek_v3": "deepseek",
    "deepseek_v31": "deepseek",
    "kimi_k2": "kimi",
    "glm45": "glm",
    "glm47": "glm",
    "minimax_m2": "minimax",
    "qwen3_xml": "qwen3_coder",
    "qwen3_json": "hermes",
    "granite": "phi4",
    "phi4_mini_json": "phi4",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "olmo3": "pythonic",
}


@dataclass(frozen=True)
class ReasoningFormat:
    """Reasoning stands first, between two tags; a template may put the first into the prompt."""

    name: str
    open: str
    close: str
    control_tokens: bool = False


REASONING_FORMATS = (
    ReasoningFormat("think", "<think>", "</think>"),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]", control_tokens=True),
    ReasoningFormat("seed", "<seed:think>", "</seed:think>"),
    ReasoningFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>", control_tokens=True),
)

REASONING_BY_NAME: Mapping[str, ReasoningFormat] = {f.name: f for f in REASONING_FORMATS}
_THINK = ("deepseek_r1", "deepseek_v3", "glm45", "kimi_k2", "minimax_m2", "qwen3", "nemotron_v3")
REASONING_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(_THINK, "think"),
    "seed_oss": "seed",
    "cohere_command3": "cohere",
    "cohere_command4": "cohere",
    "openai_gptoss": "none",  # its tool format separates the channels
}


def detect_format(template: str) -> ToolFormat | None:
    """The format of calls in a chat template; None when it shows none."""
    for row in TOOL_FORMATS:
        if any(mark in template for mark in row.marks):
            return row
    return None


def detect_reasoning(template: str) -> ReasoningFormat | None:
    """The format of reasoning in a chat template; None when it shows none."""
    for row in REASONING_FORMATS:
        if row.open in template or row.close in template:
            return row
    return None
