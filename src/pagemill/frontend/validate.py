"""The checks of a request that need the model, and what the model adds to the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

from pagemill.errors import ContextTooLong, InvalidParams
from pagemill.frontend.outputs import Prompt
from pagemill.frontend.tokenizer import Tokenizer, check_text
from pagemill.params import SamplingParams, ThinkingTokens

MAX_BAD_WORD_LENGTH = 256


class RequestValidator:
    """Knows the model's vocabulary and limits. `max_logprobs` -1 means no limit."""

    def __init__(
        self,
        *,
        vocab_size: int,
        max_logprobs: int,
        eos_token_ids: Iterable[int] = (),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._max_logprobs = max_logprobs
        self._eos_token_ids = [i for i in eos_token_ids if 0 <= i < vocab_size]
        self._tokenizer = tokenizer

    def resolve(self, prompt: Prompt, params: SamplingParams, max_model_len: int) -> SamplingParams:
        """The parameters as the engine takes them; `params` stays as it is.

        `max_tokens` becomes a number, at most what the context leaves after the prompt. Grammars
        are checked elsewhere: they can take long. Raises InvalidParams or ContextTooLong.
        """
        self.check_prompt(prompt)
        self._check_vocabulary(params)
        self._check_logprobs(params)
        self._check_text(params)
        resolved = copy(params)  # what is set here needs no second look at all the others
        resolved.max_tokens = _max_tokens(len(prompt.token_ids), params, max_model_len)
        resolved.eos_token_ids = self._eos_token_ids
        resolved.bad_words_token_ids = self._bad_words(params.bad_words or [])
        resolved.thinking = self._thinking(prompt, params)
        resolved.logprobs = self._number_of_logprobs(params.logprobs)
        resolved.prompt_logprobs = self._number_of_logprobs(params.prompt_logprobs)
        return resolved

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse ids outside the vocabulary. Raises InvalidParams."""
        if not prompt.is_checked:
            check_prompt_ids(prompt.token_ids, self._vocab_size)

    def _number_of_logprobs(self, asked: int | None) -> int | None:
        """-1 asks for the whole vocabulary."""
        return self._vocab_size if asked == -1 else asked

    def _check_vocabulary(self, params: SamplingParams) -> None:
        lists = {
            "logit_bias": params.logit_bias,
            "allowed_token_ids": params.allowed_token_ids,
            "stop_token_ids": params.stop_token_ids,
        }
        for name, token_ids in lists.items():
            for token_id in token_ids or ():
                _check_token_id(token_id, self._vocab_size, name)

    def _check_logprobs(self, params: SamplingParams) -> None:
        limit = self._vocab_size if self._max_logprobs < 0 else self._max_logprobs
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(params, name)
            if asked is None:
                continue
            if (self._vocab_size if asked == -1 else asked) > limit:
                raise InvalidParams(f"{name} may be at most {limit}, got {asked}", param=name)

    def _check_text(self, params: SamplingParams) -> None:
        for stop in params.stop_strings:
            check_text(stop, "stop")
        if params.stop_strings and self._tokenizer is None:
            raise InvalidParams("stop strings need a tokenizer, which was not loaded", param="stop")

    def _thinking(self, prompt: Prompt, params: SamplingParams) -> ThinkingTokens | None:
        """The tokens of the tags, each of which must be one. Raises InvalidParams."""
        if params.thinking_token_budget is None:
            return None
        if params.thinking_tags is None or self._tokenizer is None:
            raise _no_budget("needs a chat with a model whose form of reasoning is known")
        if params.structured_outputs is not None:
            raise _no_budget("does not go with structured output or a required tool")
        open_id, close_id = map(self._tokenizer.backend.token_to_id, params.thinking_tags)
        if open_id is None or close_id is None:
            raise _no_budget(f"needs a vocabulary with the tokens {params.thinking_tags}")
        return ThinkingTokens(open_id, close_id, _is_open(prompt.token_ids, open_id, close_id))

    def _bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Each word's tokens at the start of a text and after a space, where these differ."""
        if words and self._tokenizer is None:
            raise InvalidParams("bad_words need a tokenizer, which was not loaded", "bad_words")
        found: dict[tuple[int, ...], None] = {}
        for word in words:
            if len(word) > MAX_BAD_WORD_LENGTH:
                raise InvalidParams(
                    f"bad_words may have at most {MAX_BAD_WORD_LENGTH} characters", "bad_words"
                )
            for text in (word, " " + word.lstrip()):
                assert self._tokenizer is not None
                token_ids = self._tokenizer.encode(
                    text, add_special_tokens=False, param="bad_words"
                )
                if token_ids:
                    found[tuple(token_ids)] = None
        return [list(token_ids) for token_ids in found]


def check_prompt_ids(token_ids: Sequence[int], vocab_size: int, param: str = "prompt") -> None:
    """Refuse an empty prompt and ids outside the vocabulary. Raises InvalidParams."""
    if not token_ids:
        raise InvalidParams(f"{param} must have at least one token", param=param)
    if set(map(type, token_ids)) != {int} or min(token_ids) < 0 or max(token_ids) >= vocab_size:
        for token_id in token_ids:
            _check_token_id(token_id, vocab_size, param)


def _check_token_id(token_id: Any, vocab_size: int, param: str) -> None:
    if type(token_id) is not int or not 0 <= token_id < vocab_size:
        raise InvalidParams(
            f"{param} has the token id {token_id!r}, which is not in the vocabulary "
            f"(0 to {vocab_size - 1})",
            param=param,
        )


def _no_budget(reason: str) -> InvalidParams:
    name = "thinking_token_budget"
    return InvalidParams(f"{name} {reason}", param=name)


def _is_open(token_ids: Sequence[int], open_id: int, close_id: int) -> bool:
    """Whether the text ends within reasoning."""
    last = next((i for i in reversed(token_ids) if i in (open_id, close_id)), close_id)
    return last == open_id


def _max_tokens(prompt_len: int, params: SamplingParams, max_model_len: int) -> int:
    """What was asked for, or all that the context leaves. One token is sampled even for 0."""
    room = max_model_len - prompt_len
    if room < 1:
        raise ContextTooLong(
            f"the prompt has {prompt_len} tokens, but the context length is {max_model_len} "
            "tokens and must leave room for at least one more",
            param="prompt",
        )
    if params.max_tokens is None:
        if params.min_tokens > room:
            raise ContextTooLong(_over(prompt_len, params.min_tokens, max_model_len), "min_tokens")
        return room
    if params.max_tokens > room:
        raise ContextTooLong(_over(prompt_len, params.max_tokens, max_model_len), "max_tokens")
    return params.max_tokens


def _over(prompt_len: int, asked: int, max_model_len: int) -> str:
    return (
        f"the context length is {max_model_len} tokens, but {prompt_len + asked} were asked for "
        f"({prompt_len} in the prompt, {asked} for the output)"
    )
