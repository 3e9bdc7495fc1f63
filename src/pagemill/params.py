"""What a caller may ask of a generation. Names and defaults are vLLM's.

`SamplingParams` crosses the process boundary as it is, so it holds only plain values. Checks that
need nothing but the value itself are made here; checks that need the model (vocabulary, context
length) are made in `frontend/validate.py`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from pagemill.errors import InvalidParams

MAX_SEED = 2**63 - 1
MIN_TEMPERATURE = 1e-2
MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 128
_MAX_INT32 = 2**31 - 1


_CONSTRAINTS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
_JSON_OPTIONS = {
    "disable_any_whitespace": ("json", "json_object"),
    "whitespace_pattern": ("json", "json_object"),
    "disable_additional_properties": ("json",),
}


class StructuredOutputs(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What the output must match: exactly one of the first six fields is set.

    The others are about JSON: how blanks between its parts may look, and whether objects may have
    properties that the schema does not name (unless it says so itself).
    """

    json: dict[str, Any] | str | bool | None = None  # a JSON schema
    json_object: bool | None = None  # any JSON object
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # Lark
    structural_tag: dict[str, Any] | str | None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None  # a regular expression
    disable_additional_properties: bool | None = None

    def __post_init__(self) -> None:
        given = [f for f in _CONSTRAINTS if getattr(self, f) not in (None, False)]
        if len(given) != 1:
            raise InvalidParams(
                "structured_outputs needs exactly one of json, json_object, regex, choice, "
                f"grammar, structural_tag; got {', '.join(given) or 'none'}",
                param="structured_outputs",
            )
        for name, kinds in _JSON_OPTIONS.items():
            if getattr(self, name) and given[0] not in kinds:
                raise InvalidParams(
                    f"structured_outputs.{name} goes with {' or '.join(kinds)}, not {given[0]}",
                    param=f"structured_outputs.{name}",
                )


class ThinkingTokens(msgspec.Struct):
    """The tokens between which a model reasons. `in_prompt`: the prompt has the first already."""

    open_id: int
    close_id: int
    in_prompt: bool


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How to sample one prompt. `temperature` 0 is greedy; `max_tokens` None is "to the limit".

    The last group is filled in by the frontend, never by a caller: `eos_token_ids` is what ends
    a generation unless `ignore_eos`, `bad_words_token_ids` are the tokenised `bad_words`,
    `thinking` the tokenised `thinking_tags`.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 and -1: off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] | str | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None  # top-N besides the chosen token; None: none at all
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True  # no effect: there are never any
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    timeout: float | None = None  # seconds from arrival
    stream_interval: int = 1  # tokens to a piece of a stream
    thinking_token_budget: int | None = None  # of reasoning; needs `thinking_tags`
    thinking_tags: tuple[str, str] | None = None  # what opens and closes it; set by the chat API

    eos_token_ids: list[int] = []
    bad_words_token_ids: list[list[int]] = []
    thinking: ThinkingTokens | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        if self.top_k == -1:
            self.top_k = 0
        _check_numbers(self)
        _check_counts(self)
        _check_lists(self)
        if 0 < self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )

    @property
    def stop_strings(self) -> list[str]:
        return list(self.stop or ())


def _require(ok: bool, param: str, message: str) -> None:
    if not ok:
        raise InvalidParams(f"{param} {message}", param=param)


def _bounded(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (low_open and value == low):
        bracket = "(" if low_open else "["
        raise InvalidParams(
            f"{name} must be in {bracket}{low:g}, {high:g}], got {value!r}", param=name
        )


def _whole(name: str, value: Any, low: int, high: int = _MAX_INT32) -> None:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or not low <= value <= high:
        raise InvalidParams(
            f"{name} must be a whole number from {low} to {high}, got {value!r}", param=name
        )


def _check_numbers(p: SamplingParams) -> None:
    _bounded("temperature", p.temperature, 0, 2)
    _bounded("top_p", p.top_p, 0, 1, low_open=True)
    _bounded("min_p", p.min_p, 0, 1)
    _bounded("presence_penalty", p.presence_penalty, -2, 2)
    _bounded("frequency_penalty", p.frequency_penalty, -2, 2)
    _bounded("repetition_penalty", p.repetition_penalty, 0, 100, low_open=True)
    if p.timeout is not None:
        _bounded("timeout", p.timeout, 0, 86_400, low_open=True)


def _check_counts(p: SamplingParams) -> None:
    _whole("n", p.n, 1, MAX_N)
    _whole("top_k", p.top_k, 0)
    if p.max_tokens is not None:
        _whole("max_tokens", p.max_tokens, 0)
    _whole("min_tokens", p.min_tokens, 0)
    _whole("stream_interval", p.stream_interval, 1)
    if p.thinking_token_budget is not None:
        _whole("thinking_token_budget", p.thinking_token_budget, 0)
    if p.max_tokens is not None:
        within = p.min_tokens <= p.max_tokens
        _require(within, "min_tokens", f"must be at most max_tokens, {p.max_tokens}")
    if p.seed is not None:
        _whole("seed", p.seed, -MAX_SEED - 1, MAX_SEED)
    if p.logprobs is not None:
        _whole("logprobs", p.logprobs, -1)
    if p.prompt_logprobs is not None:
        _whole("prompt_logprobs", p.prompt_logprobs, -1)


def _check_lists(p: SamplingParams) -> None:
    stops = p.stop_strings
    _require(len(stops) <= MAX_STOP_STRINGS, "stop", f"may hold at most {MAX_STOP_STRINGS} strings")
    for stop in stops:
        ok = isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH
        _require(ok, "stop", f"strings must have 1 to {MAX_STOP_LENGTH} characters")
    _require(
        not stops or p.detokenize, "stop", "strings need detokenize, which this request turns off"
    )
    _require(
        len(p.stop_token_ids or ()) <= MAX_STOP_STRINGS * 8,
        "stop_token_ids",
        f"may hold at most {MAX_STOP_STRINGS * 8} ids",
    )
    bias = p.logit_bias or {}
    _require(len(bias) <= MAX_LOGIT_BIAS, "logit_bias", f"may hold at most {MAX_LOGIT_BIAS} tokens")
    for value in bias.values():
        ok = math.isfinite(value) and -100 <= value <= 100
        _require(ok, "logit_bias", f"values must be in [-100, 100], got {value!r}")
    allowed = p.allowed_token_ids
    _require(allowed is None or len(allowed) > 0, "allowed_token_ids", "must not be empty")
    words = p.bad_words or []
    _require(len(words) <= MAX_BAD_WORDS, "bad_words", f"may hold at most {MAX_BAD_WORDS} words")
    _require(all(words), "bad_words", "must not contain an empty word")


PoolingTask = Literal["embed", "classify", "token_embed"]


class PoolingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How to pool one prompt. Names are vLLM's.

    `use_activation` False leaves out normalisation, sigmoid or softmax; None is what the model's
    files say. `task` None is the model's own. `second_text` is filled in by the frontend: where
    the second text of a pair begins, 0 for a single text.
    """

    task: PoolingTask | None = None
    dimensions: int | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None

    second_text: int = 0

    def __post_init__(self) -> None:
        for name, least in (("dimensions", 1), ("truncate_prompt_tokens", -1)):
            value = getattr(self, name)
            ok = value is None or (type(value) is int and least <= value < 2**31)
            _require(ok, name, f"must be a whole number of at least {least}, got {value!r}")

    @property
    def by_token(self) -> bool:
        """Whether every token gets a vector."""
        return self.task == "token_embed"
