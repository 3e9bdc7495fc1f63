"""Grammars: what is refused and why, and that masks allow exactly what the grammar allows."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pagemill.errors import GrammarError, InvalidParams
from pagemill.grammar.compiler import GrammarCompiler
from pagemill.grammar.manager import GrammarManager, GrammarState
from pagemill.grammar.source import MAX_RULES, check_grammar
from pagemill.grammar.vocabulary import Vocabulary
from pagemill.params import StructuredOutputs

EOS = 256
VOCAB = 300  # wider than the tokenizer, as padded models are


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    vocabulary = Vocabulary(tokenizer.to_str(), VOCAB, (EOS,), frozenset({"<eos>"}))
    return GrammarCompiler(lambda: vocabulary)


@pytest.fixture(scope="module")
def manager(compiler: GrammarCompiler) -> GrammarManager:
    return GrammarManager(compiler)


def sample(manager: GrammarManager, spec: StructuredOutputs, seed: int, limit: int = 400) -> str:
    """A random walk through the grammar."""
    rng = random.Random(seed)
    tokens = Tokenizer.from_str(manager._compiler.vocabulary.tokenizer_json)
    state, chosen = manager.start(spec), []
    while len(chosen) < limit:
        bits = np.unpackbits(manager.bitmask([state]).view(np.uint8), bitorder="little")
        token = rng.choice(np.flatnonzero(bits).tolist())
        assert token < VOCAB
        chosen.append(token)
        if token == EOS or state.accept([token]):
            break
    return tokens.decode([t for t in chosen if t != EOS])


def can_write(manager: GrammarManager, spec: StructuredOutputs, text: str) -> bool:
    """Whether an answer may begin with `text`."""
    tokens = Tokenizer.from_str(manager._compiler.vocabulary.tokenizer_json)
    try:
        manager.start(spec).accept(tokens.encode(text).ids)
    except GrammarError:
        return False
    return True


def test_regex_walks_match(manager: GrammarManager) -> None:
    for seed in range(20):
        text = sample(manager, StructuredOutputs(regex=r"[ab]{2,5}-[0-9]{3}"), seed)
        assert re.fullmatch(r"[ab]{2,5}-\d{3}", text)


def test_choice_walks_are_choices(manager: GrammarManager) -> None:
    choices = ["yes", "yes and no", "no", 'quote " and \\ slash', "naïve"]
    seen = {sample(manager, StructuredOutputs(choice=choices), seed) for seed in range(40)}
    assert seen == set(choices)


def test_lark_walks_match(manager: GrammarManager) -> None:
    spec = StructuredOutputs(grammar='start: "a" "b"+ ["c"]')
    for seed in range(20):
        text = sample(manager, spec, seed)
        assert re.fullmatch("ab+c?", text) or len(text) > 300


def test_schema_walks_validate(manager: GrammarManager) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["x", "y"]}, "flag": {"type": "boolean"}},
        "required": ["kind", "flag"],
        "additionalProperties": False,
    }
    for seed in range(10):
        value = json.loads(sample(manager, StructuredOutputs(json=schema), seed, limit=2000))
        assert value["kind"] in ("x", "y") and isinstance(value["flag"], bool)


def test_structural_tag_forces_the_schema_inside(manager: GrammarManager) -> None:
    tag = {
        "structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}],
        "triggers": ["<f"],
    }
    state = manager.start(StructuredOutputs(structural_tag=tag))
    encode = Tokenizer.from_str(manager._compiler.vocabulary.tokenizer_json).encode
    state.accept(encode("free text <f>").ids)
    bits = np.unpackbits(manager.bitmask([state]).view(np.uint8), bitorder="little")
    letters = set("".join(manager_text(manager, np.flatnonzero(bits).tolist())))
    assert set("-0123456789") <= letters and not letters & set("abcxyz<")


def manager_text(manager: GrammarManager, ids: list[int]) -> list[str]:
    tokenizer = Tokenizer.from_str(manager._compiler.vocabulary.tokenizer_json)
    return [tokenizer.decode([i]) for i in ids]


def test_accept_refuses_what_the_mask_forbids(manager: GrammarManager) -> None:
    state: GrammarState = manager.start(StructuredOutputs(choice=["aa"]))
    encode = Tokenizer.from_str(manager._compiler.vocabulary.tokenizer_json).encode
    with pytest.raises(GrammarError, match="could not be followed"):
        state.accept(encode("b").ids)


def test_states_of_one_grammar_are_independent(manager: GrammarManager) -> None:
    spec = StructuredOutputs(choice=["ab", "ba"])
    first, second = manager.start(spec), manager.start(spec)
    encode = Tokenizer.from_str(manager._compiler.vocabulary.tokenizer_json).encode
    first.accept(encode("a").ids)
    masks = manager.bitmask([first, second])
    assert (masks[0] != masks[1]).any()


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


CYCLE = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}


def chain_of_rules(length: int) -> str:
    rules = [f'a{i}: a{i + 1} a{i + 1} | "x"' for i in range(length)]
    return "\n".join(["start: a0", *rules, f'a{length}: "y"'])


def chain_of_references(length: int, depth: int = 1) -> dict[str, object]:
    """Schemas that refer to the next one, each at the end of `depth` arrays."""

    def link(i: int) -> dict[str, object]:
        found: dict[str, object] = {"$ref": f"#/$defs/{i + 1}"}
        for _ in range(depth):
            found = {"items": found}
        return found

    links: dict[str, object] = {str(i): link(i) for i in range(length)}
    return {"$defs": {**links, str(length): {"type": "null"}}, "$ref": "#/$defs/0"}


REFUSED = [
    ({"json": nested(500)}, "nested deeper"),
    ({"json": chain_of_references(80, 40)}, "levels along its references"),
    ({"grammar": "start: %json " + json.dumps(chain_of_references(3000))}, "1000 levels"),
    ({"grammar": "start: %json {'a'}"}, "not valid JSON"),
    (
        {"json": {"anyOf": [{"$ref": "#" + "/" * i} for i in range(700)]}},
        "refers to more than",
    ),
    ({"json": CYCLE}, "only refers to itself"),
    ({"json": {"$ref": "https://example.com/schema.json"}}, "outside the schema"),
    ({"json": {"$ref": "#/$defs/none"}}, "points to nothing"),
    ({"json": "{not json"}, "not valid JSON"),
    ({"json": {"not": {"type": "string"}}}, "not"),
    ({"json": {"type": "string", "format": "nonsense"}}, "format"),
    ({"json": {"oneOf": [{"type": "object"}, {"type": "object"}]}}, "oneOf"),
    ({"json": {"properties": {f"p{i}": {} for i in range(3000)}}}, "properties"),
    ({"json": {"type": "integer", "minimum": 10**40}}, "integer range"),
    ({"regex": "(?=a)b"}, "cannot be enforced"),
    ({"regex": "x" * 20_000}, "characters"),
    ({"choice": []}, "choice"),
    ({"choice": [""]}, "not empty"),
    ({"grammar": 'root ::= "a"'}, "Lark"),
    ({"grammar": "start: undefined_rule"}, "cannot be enforced"),
    ({"grammar": chain_of_rules(10_000)}, "more than 1000 rules"),
    ({"grammar": "start: " + "(" * 5_000 + '"a"' + ")" * 5_000}, "too deeply nested"),
    ({"structural_tag": {"triggers": ["<"]}}, "structural_tag"),
    (
        {
            "structural_tag": {
                "triggers": ["<"],
                "structures": [{"begin": "x", "schema": {"type": "null"}}],
            }
        },
        "no trigger",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED, ids=[r for _, r in REFUSED])
def test_refused_with_the_reason(
    compiler: GrammarCompiler, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)):
        compiler.compile(StructuredOutputs(**fields))


@pytest.mark.parametrize(
    "schema",
    [
        chain_of_references(20, 40),
        chain_of_references(300),
        {"$defs": {f"d{i}": nested(4) for i in range(900)}, "$ref": "#/$defs/d7"},
        {"properties": {f"p{i}": {"$ref": "#/$defs/d"} for i in range(500)}, "$defs": {"d": {}}},
        {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}, "type": "object"},
    ],
)
def test_references_within_the_limits_are_followed(
    compiler: GrammarCompiler, schema: dict[str, object]
) -> None:
    compiler.compile(StructuredOutputs(json=schema))


def test_long_chains_of_references_are_checked_soon() -> None:
    begin = time.thread_time()
    with pytest.raises(GrammarError, match="levels"):
        check_grammar(StructuredOutputs(json=chain_of_references(4000, 0)))
    assert time.thread_time() - begin < 10


def test_blanks_are_as_asked_for(manager: GrammarManager) -> None:
    schema = {"type": "array", "items": {"const": {"a": [1, 2]}}, "minItems": 2, "maxItems": 2}
    for seed in range(5):
        spec = StructuredOutputs(json=schema, disable_any_whitespace=True)
        assert sample(manager, spec, seed) == '[{"a":[1,2]},{"a":[1,2]}]'
        spec = StructuredOutputs(json=schema, whitespace_pattern="~")
        assert set(sample(manager, spec, seed)) <= set('[{"a":1,2}]~')


OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a"],
    "additionalProperties": False,
}
TAG = {"structures": [{"begin": "<f>", "schema": OBJECT, "end": "</f>"}], "triggers": ["<f>"]}


@pytest.mark.parametrize("indent", [None, 2, 4, "\t"])
def test_json_may_be_in_one_line_or_indented(manager: GrammarManager, indent: int | str) -> None:
    text = json.dumps({"a": [1, 2]}, indent=indent)
    assert can_write(manager, StructuredOutputs(json=OBJECT), text)
    assert can_write(manager, StructuredOutputs(structural_tag=TAG), f"<f>{text}</f>")


@pytest.mark.parametrize("blanks", [" " * 3, "\n\n", "\t", "\n" + " " * 25, " \n"])
def test_blanks_cannot_fill_the_answer(manager: GrammarManager, blanks: str) -> None:
    assert not can_write(manager, StructuredOutputs(json=OBJECT), '{"a":' + blanks)
    assert not can_write(manager, StructuredOutputs(json_object=True), '{"a":' + blanks)
    assert not can_write(manager, StructuredOutputs(structural_tag=TAG), '<f>{"a":' + blanks)


def test_what_cannot_be_followed_is_the_requests_fault(manager: GrammarManager) -> None:
    state = manager.start(StructuredOutputs(regex="a"))
    with pytest.raises(GrammarError, match="could not be followed") as caught:
        state.accept([ord("b")])
    assert caught.value.param == "structured_outputs"


def test_properties_that_no_schema_names_can_be_turned_off(manager: GrammarManager) -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "null"}}}
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/inner"}, "open": {**inner, **{"required": []}}},
        "$defs": {"inner": inner},
    }
    schema["properties"]["open"]["additionalProperties"] = True
    for closed in (False, True):
        spec = StructuredOutputs(json=schema, disable_additional_properties=closed)
        assert can_write(manager, spec, '{"a": {"properties": null}, "open": {"x": 1}}')
        assert can_write(manager, spec, '{"b": 1}') is not closed
        assert can_write(manager, spec, '{"a": {"b": 1}}') is not closed
        assert can_write(manager, spec, '{"a": {"additionalProperties": 1}}') is not closed


OPEN = {
    "pieces of one object": {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    "a required name without a schema": {"properties": {"a": {}}, "required": ["b"]},
    "what the schema says": {"properties": {"a": {}}, "additionalProperties": {"type": "integer"}},
}


def test_objects_are_closed_where_one_schema_names_all(manager: GrammarManager) -> None:
    spec = StructuredOutputs(json={"type": "object", "properties": {"a": {"type": "integer"}}})
    assert can_write(manager, spec, '{"a": 1}')
    assert not can_write(manager, spec, '{"b": 1}')


@pytest.mark.parametrize("schema", OPEN.values(), ids=OPEN.keys())
def test_objects_stay_open_where_closing_could_contradict(
    manager: GrammarManager, schema: dict[str, Any]
) -> None:
    spec = StructuredOutputs(json={"type": "object", **schema})
    assert can_write(manager, spec, '{"b": 1}')


def test_exactly_one_constraint() -> None:
    with pytest.raises(InvalidParams, match="exactly one"):
        StructuredOutputs(regex="a", choice=["b"])
    with pytest.raises(InvalidParams, match="exactly one"):
        StructuredOutputs()


LARGE = {
    "enum": {"json": {"enum": [f"value number {i}" for i in range(20_000)]}},
    "exclusive": {
        "json": {
            "oneOf": [
                {"type": "object", "properties": {"k": {"const": f"v{i}"}}, "required": ["k"]}
                for i in range(500)
            ]
        }
    },
    "choice": {"choice": [f"choice {i}" for i in range(20_000)]},
    "optional properties": {
        "json": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(2_000)}}
    },
}


@pytest.mark.parametrize("name", LARGE)
def test_large_grammars_can_be_followed(manager: GrammarManager, name: str) -> None:
    """Not only compiled: limits of the parser show when the first tokens come."""
    assert sample(manager, StructuredOutputs(**LARGE[name]), seed=1, limit=40)


def test_long_chains_of_rules_compile(compiler: GrammarCompiler) -> None:
    compiler.compile(StructuredOutputs(grammar=chain_of_rules(MAX_RULES - 2)))


def test_compile_runs_beside_the_caller(manager: GrammarManager) -> None:
    enum = {"enum": [f"another value {i}" for i in range(20_000)]}
    state = manager.start(StructuredOutputs(json=enum))
    polls = 0
    while not state.ready:
        polls += 1
        time.sleep(0.001)
    assert polls > 0
    assert manager.bitmask([state]).any()
