"""Every format, cut in every way, parses as the whole text does; nothing raises or gets lost."""

# ruff: noqa: RUF001 (the bars in DeepSeek's tokens are full-width on purpose)

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from api.tools.written import WRITERS, Call
from pagemill.api.tools.base import ParsedDelta
from pagemill.api.tools.formats import FORMATS_BY_NAME, REASONING_BY_NAME
from pagemill.api.tools.parser import StreamingParser

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "f": {},
    "math.add": {"properties": {"a": {"type": "number"}, "text": {"type": "string"}}},
}
CALL: Call = ("get_weather", {"city": "São Paulo", "days": 3})
OTHER: Call = ("f", {"xs": [1, 2.5, {"k": "a]b}"}], "flag": True, "none": None})
IDS = [f"{name}-{write.__name__}" for name, write in WRITERS]


@dataclass
class Parsed:
    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, delta: ParsedDelta) -> None:
        self.content += delta.content
        self.reasoning += delta.reasoning
        for piece in delta.tool_calls:
            if isinstance(piece.id, str):
                assert piece.type == "function"
                assert isinstance(piece.function.name, str)
                assert piece.index == len(self.calls)
                self.calls.append([piece.function.name, ""])
            assert piece.index == len(self.calls) - 1
            self.calls[-1][1] += piece.function.arguments

    @property
    def values(self) -> list[Call]:
        return [(name, json.loads(text)) for name, text in self.calls]


def parse(name: str, pieces: list[str], thinking: str | None = None, **options: Any) -> Parsed:
    reasoning = REASONING_BY_NAME[thinking] if thinking else None
    parser = StreamingParser(TOOLS, FORMATS_BY_NAME[name], reasoning, **options)
    parsed = Parsed()
    for piece in pieces:
        parsed.add(parser.push(piece))
    parsed.add(parser.finish())
    return parsed


def cuts(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=IDS)
def test_every_form_is_understood(name: str, write: Any) -> None:
    for calls in ([CALL], [OTHER], [CALL, OTHER], [("f", {})]):
        text = write(calls)
        assert parse(name, [text]).values == calls, text
        assert parse(name, [text]).content == ""
        assert parse(name, list(text)) == parse(name, [text])
        assert parse(name, [text], max_calls=1).values == calls[:1]


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=IDS)
def test_every_single_cut(name: str, write: Any) -> None:
    text = "<think>\nhm <b>\n</think>\n\n" if name != "harmony" else ""
    text += write([CALL, OTHER])
    whole = parse(name, [text], "think")
    assert len(whole.calls) == 2
    for place in range(len(text) + 1):
        assert parse(name, [text[:place], text[place:]], "think") == whole, place


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=IDS)
def test_every_piece_of_a_few_characters(name: str, write: Any) -> None:
    text = "a <" + write([("f", {"k": 1})]) if name != "json" else write([("f", {"k": 1})])
    whole = parse(name, [text])
    for first in range(len(text)):
        for second in range(first + 1, min(first + 6, len(text))):
            pieces = [text[:first], text[first:second], text[second:]]
            assert parse(name, pieces) == whole, pieces


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(-1e6, 1e6)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(['"', "\\", "}", "]", "'", "</tool", "{", "\n", "é😀"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab é", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), JSON_VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(sorted(TOOLS)), ARGUMENTS), min_size=1, max_size=3)
PLACES = st.lists(st.integers(0, 10**4), max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WRITERS), CALLS, PLACES, st.sampled_from(["", "<think>a < b</think>\n"]))
def test_any_calls_in_any_pieces(
    writer: Any, calls: list[Call], places: list[int], lead: str
) -> None:
    name, write = writer
    text = lead + write(calls)
    whole = parse(name, [text], "think")
    assert parse(name, cuts(text, places), "think") == whole
    tagged = ("glm", "qwen3_coder", "minimax", "seed_oss")
    exact = name not in (*tagged, "pythonic", "lfm2", "harmony")
    if exact or (name == "harmony" and not lead):
        assert whole.values == calls
        assert whole.content == ""


FRAGMENTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<think>", "</think>", "<function=f>", "<parameter=a>"),
        *("</parameter>", "</function>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<|python_start|>", "```json\n"),
        *(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
        ),
        *("<|channel|>", "<|message|>", "<|start|>", "<|call|>", "analysis", "final", "function"),
        *("<minimax:tool_call>", '<invoke name="', '<parameter name="', '">', "</invoke>"),
        *("<seed:tool_call>", "</seed:tool_call>"),
        *("commentary to=functions.f", '{"name": "f"', '"arguments": ', "{", "}", "[", "]", ","),
        *("(", ")", '"', "\\", ":", ";", " ", "\n", "f", "word", "get_weather", "a=1", "<", "[T"),
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(FORMATS_BY_NAME)), st.lists(FRAGMENTS, max_size=14), PLACES)
def test_any_text_in_any_pieces(name: str, fragments: list[str], places: list[int]) -> None:
    text = "".join(fragments)
    whole = parse(name, [text], "think")
    assert parse(name, cuts(text, places), "think") == whole
    assert parse(name, list(text), "think") == whole


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WRITERS), CALLS, st.integers(0, 10**4), st.integers(0, 30), PLACES)
def test_any_damage_in_any_pieces(
    writer: Any, calls: list[Call], start: int, length: int, places: list[int]
) -> None:
    name, write = writer
    text = write(calls)
    start %= len(text)
    text = text[:start] + text[start + length :]
    whole = parse(name, [text])
    assert parse(name, cuts(text, places)) == whole
    if not whole.calls and name not in ("deepseek", "kimi", "minimax", "harmony"):
        assert whole.content == text


@pytest.mark.parametrize("name", sorted(FORMATS_BY_NAME))
@pytest.mark.parametrize("text", ["Hello, world!", " padded \n", "a < b [1] {2} <tool", "", "   "])
def test_plain_text_is_content_to_the_last_character(name: str, text: str) -> None:
    assert parse(name, [text], "think") == Parsed(content=text)
    assert parse(name, list(text), "think") == Parsed(content=text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>not JSON</tool_call>"),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "argu'),
        ("hermes", '<tool_call>{"name": "a b\\n", "arguments": {}}</tool_call>'),
        ("hermes", "<tool_call>[]</tool_call>"),
        ("llama3_json", '{"name": "Bob", "parameters": {}}'),
        ("llama3_json", '{"answer": 42, "name": "f"}'),
        ("llama3_json", "{"),
        ("mistral", "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS]f[ARGS]5"),
        ("mistral", "[TOOL_CALLS]" + "x" * 2000 + "[ARGS]{}"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[unknown(a=1)]"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[f(a=__import__('os').system('true'))]"),
        ("pythonic", "[f(a=1e999)]"),
        ("pythonic", "[f(**{'a': 1})]"),
        ("pythonic", "[f(a=" + "(" * 500 + ")" * 500 + ")]"),
        ("pythonic", "[f(a=1), g.h(b=2)]"),
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>1\n</function>\n</tool_call>"),
        ("qwen3_coder", "<function=f"),
        ("glm", "<tool_call>f\n<arg_key>a</arg_key>\n</tool_call>"),
        ("glm", "<tool_call>f\n<arg_key>a</arg_key><arg_value>1</arg_value>"),
        ("deepseek", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>x<｜tool▁call▁end｜>"),
        ("harmony", "<|channel|>final"),
    ],
)
def test_what_only_looks_like_a_call_is_content(name: str, text: str) -> None:
    assert parse(name, [text]) == Parsed(content=text)
    assert parse(name, list(text)) == Parsed(content=text)


def test_arguments_are_streamed_while_they_are_written() -> None:
    parser = StreamingParser(TOOLS, FORMATS_BY_NAME["hermes"], None)
    first = parser.push('<tool_call>{"name": "f", "arguments": {"a": [1').tool_calls
    assert [(p.function.name, p.function.arguments) for p in first] == [("f", '{"a": [1')]
    second = parser.push(', 2], "b"').tool_calls
    assert [(p.id, p.function.name, p.function.arguments) for p in second] == [
        (UNSET, UNSET, ', 2], "b"')
    ]


def test_a_cut_off_call_keeps_what_came() -> None:
    parsed = parse("hermes", ['<tool_call>{"name": "f", "arguments": {"a": [1'])
    assert parsed.calls == [["f", '{"a": [1']]
    assert parsed.content == ""


def test_text_around_calls_is_content() -> None:
    text = 'I look.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n\nDone.'
    parsed = parse("hermes", [text])
    assert parsed.content == "I look.\n\n\nDone."
    assert parsed.values == [("f", {})]


def test_values_are_typed_by_the_schema() -> None:
    text = "<function=get_weather><parameter=city>42</parameter><parameter=days>42</parameter>"
    parsed = parse("qwen3_coder", [text + "</function>"])
    assert parsed.values == [("get_weather", {"city": "42", "days": 42})]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "42", "42"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "true", "true"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "42", 42),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/x"}]}, "[1]", [1]),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": 5}, "x", "x"),
        ([], "1", 1),
    ],
)
def test_types_of_bare_values(schema: Any, text: str, value: Any) -> None:
    tools = {"f": {"properties": {"a": schema}}}
    parser = StreamingParser(tools, FORMATS_BY_NAME["qwen3_coder"], None)
    delta = parser.push(f"<function=f><parameter=a>{text}</parameter></function>")
    (call,) = delta.tool_calls
    assert json.loads(call.function.arguments) == {"a": value}


def test_mistral_ids_have_nine_characters() -> None:
    parser = StreamingParser(TOOLS, FORMATS_BY_NAME["mistral"], None)
    (call,) = parser.push("[TOOL_CALLS]f[ARGS]{}").tool_calls
    assert isinstance(call.id, str)
    assert len(call.id) == 9


@pytest.mark.parametrize("thinking", sorted(REASONING_BY_NAME))
def test_reasoning(thinking: str) -> None:
    row = REASONING_BY_NAME[thinking]
    expected = Parsed("Answer", "why?\n")
    for lead, opened in ((f"\n{row.open}\n", False), ("\n", True), (f"{row.open}\n", True)):
        text = f"{lead}why?\n{row.close}\n\nAnswer"
        assert parse("hermes", [text], thinking, in_reasoning=opened) == expected
        assert parse("hermes", list(text), thinking, in_reasoning=opened) == expected


def test_reasoning_that_never_ends() -> None:
    assert parse("hermes", ["<think>why"], "think") == Parsed(reasoning="why")
    assert parse("hermes", ["why"], "think", in_reasoning=True) == Parsed(reasoning="why")


def test_harmony_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>I look. <|end|><|start|>assistant<|channel|>final<|message|>Done<|return|>"
    )
    assert parse("harmony", [text]) == Parsed("I look. Done", "hm")
    assert parse("harmony", list(text)) == Parsed("I look. Done", "hm")
