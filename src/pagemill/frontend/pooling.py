"""Requests for vectors, from prompts to the engine and back."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np

from pagemill.config.pooling import PoolingConfig
from pagemill.engine.messages import AddRequest, EngineInfo, RequestDelta
from pagemill.errors import (
    ContextTooLong,
    InvalidParams,
    PageMillError,
    RequestAborted,
    WrongModel,
)
from pagemill.frontend.outputs import ChoiceUpdate, PooledOutput, Prompt, refusal
from pagemill.params import PoolingParams, SamplingParams

_ONCE = SamplingParams(max_tokens=1, ignore_eos=True, detokenize=False)


class PoolingProcessor:
    """Gathers the vectors of one engine request; its only update is the last.

    Stands where an `OutputProcessor` does for text.
    """

    stopped_early = False

    def __init__(self, index: int) -> None:
        self.finished = False
        self._update = ChoiceUpdate(index)
        self._parts: list[bytes] = []

    def process(self, delta: RequestDelta) -> ChoiceUpdate | None:
        """The update, once the request has ended."""
        if self.finished:
            return None
        if delta.pooled:
            self._parts.append(delta.pooled)
        update = self._update
        if delta.num_cached_tokens is not None:
            update.num_cached_tokens = delta.num_cached_tokens
        if delta.scheduled_time is not None:
            update.scheduled_time = delta.scheduled_time
        if delta.finish_reason is None:
            return None
        self.finished = True
        update.finish_reason, update.error = delta.finish_reason, delta.error
        update.error_param = delta.error_param
        update.pooled = b"".join(self._parts)
        return update

    def fail(self, error: str) -> ChoiceUpdate | None:
        """End the request because the engine is gone."""
        return self.process(RequestDelta("", finish_reason="error", error=error))


class PoolingCollector:
    """The same for offline work."""

    num_tokens = 0  # generated ones

    def __init__(self, params: PoolingParams, num_tokens: int) -> None:
        self._processor = PoolingProcessor(0)
        self._params, self._num_tokens = params, num_tokens
        self._update: ChoiceUpdate | None = None

    def add(self, delta: RequestDelta) -> bool:
        """Take a delta; True when the request has ended."""
        self._update = self._processor.process(delta)
        return self._processor.finished

    def result(self) -> PooledOutput:
        assert self._update is not None, "a result was asked for before the end"
        return read_output(self._update, self._params, self._num_tokens)


def resolve_pooling_params(
    prompt: Prompt, params: PoolingParams, info: EngineInfo
) -> PoolingParams:
    """The parameters as the engine takes them. Raises WrongModel, InvalidParams, ContextTooLong."""
    pooling = info.pooling
    if pooling is None:
        raise WrongModel("this model generates text; it makes no vectors")
    _check_length(len(prompt.token_ids), info.max_model_len)
    task = params.task or pooling.task
    _check_task(task, pooling)
    if params.dimensions is not None:
        _check_dimensions(params.dimensions, task, pooling)
    return msgspec.structs.replace(params, task=task, second_text=prompt.second_text)


def pooling_request(
    request_id: str, client_id: int, prompt: Prompt, hashes: bytes, params: PoolingParams
) -> AddRequest:
    """The engine's request for one prompt."""
    return AddRequest(
        request_id=request_id,
        client_id=client_id,
        token_ids=prompt.packed_ids(),
        block_hashes=hashes,
        params=_ONCE,
        arrival_time=time.monotonic(),
        pooling=params,
    )


def check_ended_well(update: ChoiceUpdate) -> None:
    """Raises RequestAborted, or PageMillError for a request that the engine gave up.

    RequestError when the engine finds the request at fault.
    """
    if update.finish_reason == "error":
        raise refusal(update.error, update.error_param) or PageMillError(
            update.error or "the engine could not finish a request"
        )
    if update.finish_reason == "abort":
        raise RequestAborted(update.error or "the request was aborted")


def read_output(update: ChoiceUpdate, params: PoolingParams, num_tokens: int) -> PooledOutput:
    """Raises PageMillError for a request that ended without its vectors."""
    check_ended_well(update)
    values = np.frombuffer(update.pooled, "<f4")
    if params.by_token:
        values = values.reshape(num_tokens, -1)
    return PooledOutput(values, update.num_cached_tokens, update.scheduled_time)


def cosine(first: PooledOutput, second: PooledOutput) -> float:
    """The cosine of the angle between two embeddings."""
    lengths = np.linalg.norm(first.values) * np.linalg.norm(second.values)
    return float(np.dot(first.values, second.values) / max(float(lengths), 1e-12))


def pair_up(first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    """One with each of many, or the first with the first and so on. Raises InvalidParams."""
    for name, texts in (("text_1", first), ("text_2", second)):
        if not texts:
            raise InvalidParams(f"{name} must not be empty", param=name)
    if len(first) == 1:
        return [(first[0], text) for text in second]
    if len(first) != len(second):
        raise InvalidParams(
            f"text_1 has {len(first)} texts and text_2 {len(second)}; they must be equally many, "
            "or text_1 just one",
            param="text_2",
        )
    return list(zip(first, second, strict=True))


def check_scores_pairs(pooling: PoolingConfig | None) -> None:
    """Raises WrongModel for a model that cannot score two texts together."""
    if pooling is None:
        raise WrongModel("this model generates text; it makes no scores")
    if not pooling.scores_pairs:
        raise WrongModel(
            f"this model classifies texts by {pooling.width} labels; scoring needs an embedding "
            "model or a cross-encoder, which has one"
        )


def _check_length(num_tokens: int, limit: int) -> None:
    if num_tokens > limit:
        raise ContextTooLong(
            f"the text has {num_tokens} tokens, but this model takes at most {limit}; shorten it, "
            "or set truncate_prompt_tokens to -1",
            param="input",
        )


def _check_task(task: str, pooling: PoolingConfig) -> None:
    offered = ("embed", "token_embed") if pooling.task == "embed" else ("classify",)
    if task not in offered:
        makes = "embeddings" if pooling.task == "embed" else "scores of a classifier"
        raise InvalidParams(
            f"this model makes {makes}: task must be {' or '.join(offered)}, got {task!r}",
            param="task",
        )


def _check_dimensions(asked: int, task: str, pooling: PoolingConfig) -> None:
    allowed = pooling.dimensions
    if task == "classify" or allowed is None:
        raise InvalidParams(
            "this model's embeddings cannot be shortened, as its config.json has neither "
            "matryoshka_dimensions nor is_matryoshka",
            param="dimensions",
        )
    if asked > pooling.width or (allowed and asked not in allowed):
        which = f"one of {', '.join(map(str, allowed))}" if allowed else f"at most {pooling.width}"
        raise InvalidParams(f"dimensions must be {which}, got {asked}", param="dimensions")
