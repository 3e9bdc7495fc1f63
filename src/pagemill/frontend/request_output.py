"""What the offline API returns. Names and shapes are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagemill.engine.messages import FinishReason
from pagemill.frontend.outputs import ChoiceUpdate, Prompt, TokenLogprob, TokenLogprobs


@dataclass(slots=True)
class Logprob:
    """The log-probability of one token at one position; rank 1 is the most likely."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One choice. `logprobs` maps token ids to log-probabilities, position by position."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One prompt with its choices. `prompt` is None when it was given as token ids."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    num_cached_tokens: int = 0


def request_output(request_id: str, prompt: Prompt, choices: list[ChoiceUpdate]) -> RequestOutput:
    """From the complete choices of a prompt, in order."""
    prompt_logprobs = choices[0].prompt_logprobs
    return RequestOutput(
        request_id=request_id,
        prompt=prompt.text,
        prompt_token_ids=prompt.token_ids,
        prompt_logprobs=None
        if prompt_logprobs is None
        else [None if p is None else _by_token(p) for p in prompt_logprobs],
        outputs=[_completion(choice) for choice in choices],
        num_cached_tokens=choices[0].num_cached_tokens,
    )


def _completion(choice: ChoiceUpdate) -> CompletionOutput:
    positions = choice.logprobs
    return CompletionOutput(
        index=choice.index,
        text=choice.text,
        token_ids=choice.token_ids,
        cumulative_logprob=None if positions is None else sum(p.chosen.logprob for p in positions),
        logprobs=None if positions is None else [_by_token(p) for p in positions],
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
    )


def _by_token(position: TokenLogprobs) -> dict[int, Logprob]:
    """The chosen token first; it is often among the top ones too."""
    return {entry.token_id: _logprob(entry) for entry in (position.chosen, *position.top)}


def _logprob(entry: TokenLogprob) -> Logprob:
    return Logprob(entry.logprob, entry.rank, entry.token)
