"""What the model refuses, and what it adds to the parameters."""

import pytest

from pagemill.errors import ContextTooLong, InvalidParams, RequestError
from pagemill.frontend.outputs import Prompt
from pagemill.frontend.validate import RequestValidator, check_prompt_ids
from pagemill.params import SamplingParams, StructuredOutputs, ThinkingTokens
from unit.frontend.vocabularies import byte_level, sentencepiece

TOKENIZER = byte_level()
VOCAB = TOKENIZER.vocab_size
VALIDATOR = RequestValidator(
    vocab_size=VOCAB, max_logprobs=5, eos_token_ids=[3, VOCAB + 7], tokenizer=TOKENIZER
)
CONTEXT = 32


def resolve(num_prompt: int = 4, **params: object) -> SamplingParams:
    return VALIDATOR.resolve(Prompt([1] * num_prompt), SamplingParams(**params), CONTEXT)


@pytest.mark.parametrize(
    ("num_prompt", "asked", "resolved"), [(4, None, 28), (4, 28, 28), (31, None, 1), (4, 0, 0)]
)
def test_max_tokens(num_prompt: int, asked: int | None, resolved: int) -> None:
    assert resolve(num_prompt, max_tokens=asked).max_tokens == resolved


@pytest.mark.parametrize(
    ("num_prompt", "params", "param", "message"),
    [
        (32, {}, "prompt", "the prompt has 32 tokens, but the context length is 32"),
        (4, {"max_tokens": 29}, "max_tokens", "33 were asked for .4 in the prompt, 29 for"),
        (4, {"max_tokens": None, "min_tokens": 29}, "min_tokens", "33 were asked for"),
    ],
)
def test_context_length(
    num_prompt: int, params: dict[str, object], param: str, message: str
) -> None:
    with pytest.raises(ContextTooLong, match=message) as caught:
        resolve(num_prompt, **params)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [0, -1]}, "allowed_token_ids"),
        ({"stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"stop": ["\ud800"]}, "stop"),
        ({"bad_words": ["\udfff"]}, "bad_words"),
        ({"bad_words": ["a" * 257]}, "bad_words"),
    ],
)
def test_refused(params: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        resolve(**params)
    assert caught.value.param == param


@pytest.mark.parametrize("token_ids", [[], [-1], [VOCAB], [1, "2"], [1.0], [None], [True]])
def test_prompt_ids(token_ids: list[object]) -> None:
    with pytest.raises(InvalidParams) as caught:
        check_prompt_ids(token_ids, VOCAB, "input")
    assert caught.value.param == "input"


def test_logprobs_without_a_limit() -> None:
    validator = RequestValidator(vocab_size=VOCAB, max_logprobs=-1)
    assert validator.resolve(Prompt([1]), SamplingParams(logprobs=-1), CONTEXT).logprobs == VOCAB


def test_what_the_model_adds() -> None:
    params = SamplingParams(max_tokens=2, bad_words=["stop"], seed=5)
    resolved = VALIDATOR.resolve(Prompt([1]), params, CONTEXT)
    words = {TOKENIZER.decode(ids) for ids in resolved.bad_words_token_ids}
    assert words == {"stop", " stop"}
    assert resolved.eos_token_ids == [3]
    assert resolved.seed == 5
    assert params.eos_token_ids == []


def test_a_budget_of_reasoning_knows_its_tokens() -> None:
    tags = ("<|start of turn|>", "<|end|>")
    open_id, close_id = (TOKENIZER.encode(tag)[0] for tag in tags)
    params = SamplingParams(thinking_token_budget=0, thinking_tags=tags)
    for prompt, in_prompt in (
        ([1], False),
        ([open_id, 1], True),
        ([open_id, 1, close_id], False),
        ([open_id, close_id, open_id], True),
    ):
        resolved = VALIDATOR.resolve(Prompt(prompt), params, CONTEXT)
        assert resolved.thinking == ThinkingTokens(open_id, close_id, in_prompt)
    assert resolve().thinking is None


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "form of reasoning is known"),
        ({"thinking_tags": ("<think>", "</think>")}, "tokens .*</think>"),
        (
            {
                "thinking_tags": ("<|start of turn|>", "<|end|>"),
                "structured_outputs": StructuredOutputs(regex="a"),
            },
            "structured output",
        ),
    ],
)
def test_a_budget_of_reasoning_that_cannot_be_kept(params: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidParams, match=reason) as caught:
        resolve(thinking_token_budget=5, **params)
    assert caught.value.param == "thinking_token_budget"


def test_bad_words_of_a_sentencepiece_vocabulary() -> None:
    tokenizer = sentencepiece()
    validator = RequestValidator(
        vocab_size=tokenizer.vocab_size, max_logprobs=0, tokenizer=tokenizer
    )
    resolved = validator.resolve(Prompt([1]), SamplingParams(bad_words=["hello"]), CONTEXT)
    assert ["▁h", "e", "l", "l", "o"] in [
        [tokenizer.backend.id_to_token(i) for i in ids] for ids in resolved.bad_words_token_ids
    ]


@pytest.mark.parametrize("params", [{"stop": ["a"]}, {"bad_words": ["a"]}])
def test_text_needs_a_tokenizer(params: dict[str, object]) -> None:
    validator = RequestValidator(vocab_size=VOCAB, max_logprobs=5)
    with pytest.raises(RequestError, match="tokenizer"):
        validator.resolve(Prompt([1]), SamplingParams(**params), CONTEXT)
