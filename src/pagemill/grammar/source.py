"""From what a request asks for to the text of a grammar, with limits on size, before any compile.

The grammar language is llguidance's Lark dialect. Nothing here needs a tokenizer or torch, so
the frontend refuses a bad schema before the engine hears of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pagemill.errors import GrammarError
from pagemill.grammar.references import check_references, walk
from pagemill.params import StructuredOutputs

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SOURCE_BYTES = 512 * 1024
MAX_REGEX_CHARS = 16 * 1024
MAX_DEPTH = 64
MAX_NODES = 200_000
MAX_CHOICES = 20_000
MAX_PROPERTIES = 2_000
MAX_BLANKS_CHARS = 256
MAX_RULES = 1_000  # the compiler recurses along chains of rules: some thousands end the process

_PARAM = "structured_outputs"
_SCHEMA_HEAD = re.compile(r"%json\s*")
_RULE_HEAD = re.compile(r"[\w\]}]\s*:")  # finds some that are none, but none too few

# Members of a schema that are plain values, and those that hold schemas by any name.
_VALUES = frozenset({"enum", "const", "default", "examples"})
_SCHEMAS_BY_NAME = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
)

# Members by which several schemas describe one object; of the second ones a schema may have one.
_SHARES_OBJECTS = frozenset({"allOf", "if", "dependentSchemas", "not"})
_DESCRIBES_OBJECTS = frozenset({"properties", "anyOf", "oneOf", "$ref"})

# JSON in one line or indented, never more: a small model that likes blanks would fill its answer
# with them. Between two parts there can be one match of this.
_WHITESPACE = r"\x20{1,2}|\r?\n(\x20{0,24}|\t{0,8})"
BLANKS_GUIDANCE: Mapping[str, Any] = {"x-guidance": {"whitespace_pattern": _WHITESPACE}}


def to_grammar(spec: StructuredOutputs, special_tokens: frozenset[str] = frozenset()) -> str:
    """The llguidance grammar for `spec`.

    `special_tokens` are the texts that the tokenizer treats as one control token; a structural
    tag's trigger among them is matched as that token. Raises GrammarError with the reason when
    the request is too large, malformed or cannot be enforced.
    """
    if spec.json is not None:
        schema = _parse_schema(spec.json)
        return _from_schema(schema, _blanks(spec), closed=spec.disable_additional_properties)
    if spec.json_object:
        return _from_schema({"type": "object"}, _blanks(spec))
    if spec.regex is not None:
        return _from_regex(spec.regex)
    if spec.choice is not None:
        return _from_choice(spec.choice)
    if spec.grammar is not None:
        return _from_lark(spec.grammar)
    return _from_structural_tag(spec.structural_tag, special_tokens)


def check_grammar(spec: StructuredOutputs) -> None:
    """Refuse what cannot be enforced before the engine hears of it; takes milliseconds.

    Raises GrammarError with the reason, as `to_grammar` does and for what only a compile finds,
    such as an unknown type in a schema.
    """
    from llguidance import LLMatcher

    problem = LLMatcher.validate_grammar(to_grammar(spec))
    if problem:
        reason = " ".join(problem.split())[:400]
        raise GrammarError(f"the grammar cannot be enforced: {reason}", _PARAM)


def _parse_schema(schema: Any) -> Any:
    if not isinstance(schema, str):
        return schema
    if len(schema) > MAX_SOURCE_BYTES:
        raise GrammarError(f"the JSON schema is longer than {MAX_SOURCE_BYTES} bytes", _PARAM)
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not valid JSON: {error}", _PARAM) from None


def _blanks(spec: StructuredOutputs) -> JsonCompileOptions:
    """llguidance's options for the blanks between the parts of JSON."""
    pattern = spec.whitespace_pattern
    if spec.disable_any_whitespace:
        if pattern is not None:
            raise GrammarError(
                "whitespace_pattern and disable_any_whitespace exclude each other", _PARAM
            )
        return {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    if pattern is not None and len(pattern) > MAX_BLANKS_CHARS:
        raise GrammarError(
            f"whitespace_pattern may have at most {MAX_BLANKS_CHARS} characters", _PARAM
        )
    return {"whitespace_pattern": _WHITESPACE if pattern is None else pattern}


def _from_schema(schema: Any, blanks: JsonCompileOptions, *, closed: bool | None = None) -> str:
    from llguidance import LLMatcher

    if not isinstance(schema, dict | bool):
        raise GrammarError("a JSON schema must be an object", _PARAM)
    if isinstance(schema, dict):
        _check_schema(schema)
        schema = _closed(schema) if closed else close_by_default(schema, closed)
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise GrammarError(f"the JSON schema cannot be encoded: {error}", _PARAM) from None
    if len(text) > MAX_SOURCE_BYTES:
        raise GrammarError(f"the JSON schema is longer than {MAX_SOURCE_BYTES} bytes", _PARAM)
    try:
        return LLMatcher.grammar_from_json_schema(text, overrides=blanks)
    except ValueError as error:
        raise GrammarError(f"the JSON schema is not valid: {error}", _PARAM) from None


def _check_schema(schema: dict[str, Any]) -> None:
    """Bound depth, size and references."""
    for nodes, (node, depth) in enumerate(walk(schema)):
        if depth > MAX_DEPTH:
            raise GrammarError(f"the JSON schema is nested deeper than {MAX_DEPTH}", _PARAM)
        if nodes > MAX_NODES:
            raise GrammarError(f"the JSON schema has more than {MAX_NODES} parts", _PARAM)
        properties = node.get("properties") if isinstance(node, dict) else None
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise GrammarError(f"an object has more than {MAX_PROPERTIES} properties", _PARAM)
    check_references(schema)


def close_by_default(schema: dict[str, Any], closed: bool | None = None) -> dict[str, Any]:
    """Without properties that the schema does not name, unless it or the caller allows them.

    What is left out is valid without them too, and a small model would go on adding some. Where
    several schemas describe one object, each names a part only, and all stay open.
    """
    if closed is False or not all(_names_all(node) for node, _ in walk(schema)):
        return schema
    result: dict[str, Any] = _closed(schema)
    return result


def _names_all(node: Any) -> bool:
    if not isinstance(node, dict):
        return True
    if _SHARES_OBJECTS & node.keys() or len(_DESCRIBES_OBJECTS & node.keys()) > 1:
        return False
    named, required = node.get("properties"), node.get("required")
    if not isinstance(named, dict) or not isinstance(required, list):
        return True
    return all(isinstance(name, str) and name in named for name in required)


def _closed(schema: Any) -> Any:
    """The schema, whose depth is bounded, without properties that it does not name."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _closed_member(key, value) for key, value in schema.items()}
    if "properties" in copy or "patternProperties" in copy:
        copy.setdefault("additionalProperties", False)
    return copy


def _closed_member(key: str, value: Any) -> Any:
    if key in _VALUES:
        return value
    if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
        return {name: _closed(schema) for name, schema in value.items()}
    return _closed(value)


def _from_regex(regex: str) -> str:
    from llguidance import LLMatcher

    if not regex or len(regex) > MAX_REGEX_CHARS:
        raise GrammarError(f"regex must have 1 to {MAX_REGEX_CHARS} characters", _PARAM)
    return LLMatcher.grammar_from_regex(regex)


def _from_choice(choices: list[str]) -> str:
    if not choices or len(choices) > MAX_CHOICES:
        raise GrammarError(f"choice must list 1 to {MAX_CHOICES} texts", _PARAM)
    if any(not isinstance(choice, str) or not choice for choice in choices):
        raise GrammarError("every choice must be a text that is not empty", _PARAM)
    if sum(map(len, choices)) > MAX_SOURCE_BYTES:
        raise GrammarError(f"the choices are longer than {MAX_SOURCE_BYTES} bytes", _PARAM)
    # One terminal rather than rules: the parser would carry every choice along.
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in choices)


def _from_lark(grammar: str) -> str:
    if not grammar or len(grammar) > MAX_SOURCE_BYTES:
        raise GrammarError(f"grammar must have 1 to {MAX_SOURCE_BYTES} characters", _PARAM)
    if "::=" in grammar and "start:" not in grammar:
        raise GrammarError(
            "grammar must be Lark with a rule 'start:'; this looks like EBNF", _PARAM
        )
    if len(_RULE_HEAD.findall(grammar)) > MAX_RULES:
        raise GrammarError(f"the grammar has more than {MAX_RULES} rules", _PARAM)
    for found in _SCHEMA_HEAD.finditer(grammar):
        _check_schema_within(grammar, found.end())
    return grammar


def _check_schema_within(grammar: str, start: int) -> None:
    """Check the schema of Lark's `%json`."""
    try:
        schema, _ = json.JSONDecoder().raw_decode(grammar, start)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"%json in the grammar is not valid JSON: {error}", _PARAM) from None
    if isinstance(schema, dict):
        _check_schema(schema)


def _from_structural_tag(tag: Any, special_tokens: frozenset[str]) -> str:
    from llguidance import StructTag

    tags = [
        StructTag(trigger=trigger, begin=begin, grammar={**BLANKS_GUIDANCE, **schema}, end=end)
        for trigger, begin, schema, end in _tag_parts(_parse_schema(tag))
    ]
    special = all(t.trigger in special_tokens for t in tags)
    return StructTag.to_grammar(tags, assume_special=special)


def _tag_parts(tag: Any) -> list[tuple[str, str, dict[str, Any], str]]:
    """(trigger, begin, schema, end) of both ways to write structural tags.

    The older is {"structures": [{begin, schema, end}], "triggers"}, the newer {"format": {"type":
    "triggered_tags", "triggers", "tags": [{begin, content: {json_schema}, end}]}}.
    """
    if not isinstance(tag, dict):
        raise GrammarError("structural_tag must be an object", _PARAM)
    body = tag.get("format", tag)
    if "format" in tag and (not isinstance(body, dict) or body.get("type") != "triggered_tags"):
        raise GrammarError("structural_tag.format.type must be 'triggered_tags'", _PARAM)
    triggers = body.get("triggers")
    items = body.get("tags" if "format" in tag else "structures")
    if not isinstance(triggers, list) or not isinstance(items, list) or not items:
        raise GrammarError("structural_tag needs a list of triggers and a list of tags", _PARAM)
    return [_tag_part(item, triggers) for item in items]


def _tag_part(item: Any, triggers: list[Any]) -> tuple[str, str, dict[str, Any], str]:
    if not isinstance(item, dict) or not isinstance(item.get("begin"), str):
        raise GrammarError("every structural tag needs a text 'begin'", _PARAM)
    begin = item["begin"]
    content = item.get("content", {})
    schema = item.get("schema") or (content.get("json_schema") if isinstance(content, dict) else {})
    if not isinstance(schema, dict):
        raise GrammarError(f"the schema of tag {begin[:100]!r} must be an object", _PARAM)
    _check_schema(schema)
    for trigger in triggers:
        if isinstance(trigger, str) and trigger and begin.startswith(trigger):
            return trigger, begin, schema, str(item.get("end", ""))
    raise GrammarError(f"no trigger matches the start of tag {begin[:100]!r}", _PARAM)
