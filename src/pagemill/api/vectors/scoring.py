"""`/v1/score` and `/v1/rerank`: how well two texts fit.

A cross-encoder reads both at once; for an embedding model it is the cosine of their embeddings.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.context import Limits, ServerContext
from pagemill.api.vectors.answers import Ranked, Ranking, Score, ScoreList
from pagemill.api.vectors.call import VectorCall, take_in
from pagemill.api.vectors.schema import Document, RerankRequest, ScoreRequest, VectorFields
from pagemill.errors import InvalidParams
from pagemill.frontend.pooling import check_scores_pairs, cosine, pair_up
from pagemill.params import PoolingParams

B = TypeVar("B", bound=VectorFields)

_score_decoder = msgspec.json.Decoder(ScoreRequest)
_rerank_decoder = msgspec.json.Decoder(RerankRequest)


async def score(context: ServerContext, request: Request) -> Response:
    """Scores of pairs: 1 to 1, 1 to N, or N to N. Raises RequestError and so on."""
    call = await take_in(context, request, _score_decoder, "score")
    first, second = _texts(call.body.text_1), _texts(call.body.text_2)
    _check_count(max(len(first), len(second)), "text_2", context.limits)
    scores = await _scores(call, pair_up(first, second), "text_2")
    return call.respond_list(
        ScoreList, [Score(index=i, score=value) for i, value in enumerate(scores)]
    )


async def rerank(context: ServerContext, request: Request) -> Response:
    """Documents by how well they fit a query. Raises RequestError, OverloadedError and so on."""
    call = await take_in(context, request, _rerank_decoder, "rerank")
    body = call.body
    texts = [text if isinstance(text, str) else text.text for text in body.documents]
    _check_count(len(texts), "documents", context.limits)
    num_kept = _top_n(body.top_n, len(texts))
    scores = await _scores(call, [(body.query, text) for text in texts], "documents")
    best = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[:num_kept]
    shown = body.return_documents is not False
    results = [
        Ranked(index=i, relevance_score=scores[i], document=Document(texts[i]) if shown else None)
        for i in best
    ]
    return call.respond(
        Ranking(id=call.response_id, model=call.model, results=results, usage=call.usage())
    )


async def _scores(call: VectorCall[B], pairs: list[tuple[str, str]], param: str) -> list[float]:
    params = PoolingParams(use_activation=call.body.use_activation)
    if call.pooling.task == "embed":
        return await _cosines(call, pairs, params, param)
    check_scores_pairs(call.pooling)
    _check_size(pairs, param, call.context.limits)
    outputs = await call.run(await call.encode(pairs, param), params)
    return [float(output.values[0]) for output in outputs]


async def _cosines(
    call: VectorCall[B], pairs: list[tuple[str, str]], params: PoolingParams, param: str
) -> list[float]:
    """Each text is embedded once, however many pairs it is in."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    outputs = await call.run(await call.encode(texts, param), params)
    found = dict(zip(texts, outputs, strict=True))
    return [cosine(found[first], found[second]) for first, second in pairs]


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _check_count(count: int, param: str, limits: Limits) -> None:
    if not count:
        raise InvalidParams(f"{param} must not be empty", param=param)
    if count > limits.max_inputs:
        raise InvalidParams(f"{param} may hold at most {limits.max_inputs} texts", param=param)


def _check_size(pairs: list[tuple[str, str]], param: str, limits: Limits) -> None:
    """A text that is in many pairs is read in each: a small body could be endless work."""
    size = sum(len(first) + len(second) for first, second in pairs)
    if size > limits.max_body_bytes:
        raise InvalidParams(
            f"the pairs have {size} characters together, and may have {limits.max_body_bytes}",
            param=param,
        )


def _top_n(asked: int | None, num_documents: int) -> int:
    """How many results; 0 is all, as vLLM has it."""
    if asked is not None and asked < 0:
        raise InvalidParams(f"top_n must be at least 0, got {asked}", param="top_n")
    return min(asked or num_documents, num_documents)
