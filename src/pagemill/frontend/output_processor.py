"""One choice's way from engine deltas to updates for the API: text, stop strings, logprobs."""

from __future__ import annotations

import msgspec
import numpy as np

from pagemill.engine.messages import FinishReason, RequestDelta
from pagemill.frontend.detokenizer import make_detokenizer
from pagemill.frontend.logprobs import read_logprobs
from pagemill.frontend.outputs import ChoiceUpdate, TokenLogprobs
from pagemill.frontend.stop_strings import StopStrings
from pagemill.frontend.tokenizer import Tokenizer
from pagemill.params import SamplingParams


class OutputProcessor:
    """Turns the deltas of one engine request into updates of choice `index`.

    `finished` is set by the last delta or by a stop string; in the second case `stopped_early` is
    set too, and the engine must be told to abort. Later deltas are ignored.
    """

    def __init__(self, index: int, params: SamplingParams, tokenizer: Tokenizer | None) -> None:
        self.index = index
        self.finished = False
        self.stopped_early = False
        self._params = params
        self._tokenizer = tokenizer
        self._num_tokens = 0
        self._num_cached_tokens = 0
        self._num_preemptions = 0
        self._scheduled_time: float | None = None
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        if params.prompt_logprobs is not None:
            self._prompt_logprobs = [None]
        self._detokenizer = None
        if tokenizer is not None and params.detokenize:
            self._detokenizer = make_detokenizer(
                tokenizer, skip_special_tokens=params.skip_special_tokens
            )
        self._stops = None
        if params.stop_strings:
            self._stops = StopStrings(
                params.stop_strings, include_in_output=params.include_stop_str_in_output
            )
        self._silent_ids = _silent_ids(params)
        self._is_plain = self._stops is None and params.max_tokens != 0

    def process(self, delta: RequestDelta) -> ChoiceUpdate | None:
        """What this delta adds, or None when there is nothing to tell yet."""
        if self.finished:
            return None
        self._note(delta)
        if self._is_plain and len(delta.token_ids) == 4 and delta.finish_reason is None:
            return self._plain_update(delta)
        if self._params.max_tokens == 0:
            delta = _without_output(delta)
        if not delta.token_ids and delta.finish_reason is None:
            return None
        token_ids: list[int] = np.frombuffer(delta.token_ids, "<i4").tolist()
        text, num_kept, stop = self._read_text(token_ids, delta.finish_reason)
        logprobs = None
        if delta.logprobs is not None:
            logprobs = read_logprobs(delta.logprobs, self._tokenizer)[:num_kept]
        self.stopped_early = stop is not None and delta.finish_reason is None
        self.finished = stop is not None or delta.finish_reason is not None
        return self._update(delta, text, token_ids[:num_kept], logprobs, stop)

    def _plain_update(self, delta: RequestDelta) -> ChoiceUpdate:
        """The update of one more token that ends nothing, as nearly all are: the quick way."""
        token_ids = [int.from_bytes(delta.token_ids, "little", signed=True)]
        detokenizer, logprobs = self._detokenizer, None
        if delta.logprobs is not None:
            logprobs = read_logprobs(delta.logprobs, self._tokenizer)
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        return ChoiceUpdate(
            self.index,
            "" if detokenizer is None else detokenizer.add(token_ids),
            token_ids,
            logprobs,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=self._num_cached_tokens,
            scheduled_time=self._scheduled_time,
            num_preemptions=self._num_preemptions,
        )

    def fail(self, error: str) -> ChoiceUpdate | None:
        """End the choice because the engine is gone."""
        return self.process(RequestDelta("", finish_reason="error", error=error))

    def _note(self, delta: RequestDelta) -> None:
        if delta.num_preemptions > self._num_preemptions:
            self._num_preemptions = delta.num_preemptions
        if delta.num_cached_tokens is not None:
            self._num_cached_tokens = delta.num_cached_tokens
        if delta.scheduled_time is not None:
            self._scheduled_time = delta.scheduled_time
        if delta.prompt_logprobs is not None and self._prompt_logprobs is not None:
            self._prompt_logprobs += read_logprobs(delta.prompt_logprobs, self._tokenizer)

    def _update(
        self,
        delta: RequestDelta,
        text: str,
        token_ids: list[int],
        logprobs: list[TokenLogprobs] | None,
        stop: str | None,
    ) -> ChoiceUpdate:
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        return ChoiceUpdate(
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=delta.finish_reason if stop is None else "stop",
            stop_reason=delta.stop_reason if stop is None else stop,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=self._num_cached_tokens,
            error=delta.error,
            error_param=delta.error_param,
            scheduled_time=self._scheduled_time,
            num_preemptions=self._num_preemptions,
        )

    def _read_text(
        self, token_ids: list[int], finish_reason: FinishReason | None
    ) -> tuple[str, int, str | None]:
        """New text, how many of the tokens count, and the stop string that ended it, if any."""
        if self._detokenizer is None:
            return "", len(token_ids), None
        spoken = token_ids
        if finish_reason == "stop" and token_ids and token_ids[-1] in self._silent_ids:
            spoken = token_ids[:-1]
        if self._stops is None:
            text = self._detokenizer.add(spoken)
            if finish_reason is not None:
                text += self._detokenizer.flush()
            return text, len(token_ids), None
        text, num_read, stop = self._read_until_stop(spoken, self._stops)
        if stop is None and finish_reason is not None:
            rest, stop = self._stops.add(self._detokenizer.flush(), match=self._may_stop)
            text += rest + self._stops.flush()
        return text, len(token_ids) if stop is None else num_read, stop

    def _read_until_stop(
        self, token_ids: list[int], stops: StopStrings
    ) -> tuple[str, int, str | None]:
        """Token by token, because the tokens after the one that completes a stop do not count."""
        assert self._detokenizer is not None
        pieces = []
        for position, token_id in enumerate(token_ids):
            self._num_tokens += 1
            piece, stop = stops.add(self._detokenizer.add((token_id,)), match=self._may_stop)
            pieces.append(piece)
            if stop is not None:
                return "".join(pieces), position + 1, stop
        return "".join(pieces), len(token_ids), None

    @property
    def _may_stop(self) -> bool:
        return self._num_tokens > self._params.min_tokens


def _without_output(delta: RequestDelta) -> RequestDelta:
    """For requests about the prompt only: the engine samples one token, nobody asked for it."""
    ended_well = delta.finish_reason in ("stop", "length")
    return msgspec.structs.replace(
        delta,
        token_ids=b"",
        logprobs=None,
        stop_reason=None,
        finish_reason="length" if ended_well else delta.finish_reason,
    )


def _silent_ids(params: SamplingParams) -> frozenset[int]:
    """Tokens that end a generation and are no part of its text."""
    if params.include_stop_str_in_output:
        return frozenset()
    eos_ids = () if params.ignore_eos else params.eos_token_ids
    return frozenset((*eos_ids, *(params.stop_token_ids or ())))
