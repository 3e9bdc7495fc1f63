"""Log-probabilities in the shapes of OpenAI's two endpoints, and vLLM's `prompt_logprobs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagemill.api.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    TopLogprob,
)
from pagemill.frontend.outputs import TokenLogprob, TokenLogprobs

MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON does not have


def _finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)


def _name(token: TokenLogprob, as_id: bool) -> str:
    return f"token_id:{token.token_id}" if as_id else token.token


def chat_logprobs(positions: Sequence[TokenLogprobs], top: int, as_ids: bool) -> ChatLogprobs:
    """The `logprobs` of a chat choice with the `top` most likely tokens at each position."""
    content = []
    for position in positions:
        chosen = position.chosen
        likely = [
            TopLogprob(_name(t, as_ids), _finite(t.logprob), list(t.token_bytes))
            for t in position.top[:top]
        ]
        name, value = _name(chosen, as_ids), _finite(chosen.logprob)
        content.append(ChatTokenLogprob(name, value, list(chosen.token_bytes), likely))
    return ChatLogprobs(content)


class CompletionLogprobsBuilder:
    """Builds the parallel lists of one choice; `text_offset` runs on over the parts of a stream."""

    def __init__(self, top: int, as_ids: bool) -> None:
        self._top = top
        self._as_ids = as_ids
        self._offset = 0

    def prompt(
        self, first_token: str, first_id: int, positions: Sequence[TokenLogprobs | None]
    ) -> CompletionLogprobs:
        """The echoed prompt's part. Nothing precedes the first token, so it has no values."""
        name = f"token_id:{first_id}" if self._as_ids else first_token
        part = CompletionLogprobs([self._offset], [None], [name], [None])
        self._offset += len(first_token)
        self._extend(part, [position for position in positions if position is not None])
        return part

    def output(self, positions: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        """The part of newly generated tokens."""
        part = CompletionLogprobs([], [], [], [])
        self._extend(part, positions)
        return part

    def _extend(self, part: CompletionLogprobs, positions: Sequence[TokenLogprobs]) -> None:
        for position in positions:
            chosen = position.chosen
            part.text_offset.append(self._offset)
            part.token_logprobs.append(_finite(chosen.logprob))
            part.tokens.append(_name(chosen, self._as_ids))
            listed = [*position.top[: self._top], chosen]
            part.top_logprobs.append({_name(t, self._as_ids): _finite(t.logprob) for t in listed})
            self._offset += len(chosen.token)


def join(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """The parts of a stream as one."""
    whole = CompletionLogprobs([], [], [], [])
    for part in parts:
        whole.text_offset += part.text_offset
        whole.token_logprobs += part.token_logprobs
        whole.tokens += part.tokens
        whole.top_logprobs += part.top_logprobs
    return whole


def prompt_logprobs(
    positions: Sequence[TokenLogprobs | None],
) -> list[dict[int, Any] | None]:
    """vLLM's form: for every position a map from token id to its values, null for the first."""
    return [
        None
        if position is None
        else {
            token.token_id: {
                "logprob": _finite(token.logprob),
                "rank": token.rank,
                "decoded_token": token.token,
            }
            for token in (position.chosen, *position.top)
        }
        for position in positions
    ]
