"""`/v1/embeddings`, `/pooling` and `/classify`: a vector for each input."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.context import ServerContext
from pagemill.api.vectors.answers import (
    Classification,
    ClassificationList,
    Embedding,
    EmbeddingList,
    PooledData,
    PooledList,
    encoded,
    encoded_rows,
)
from pagemill.api.vectors.call import read_inputs, take_in
from pagemill.api.vectors.schema import ClassifyRequest, EmbeddingRequest, PoolingRequest
from pagemill.errors import WrongModel
from pagemill.params import PoolingParams

_embedding_decoder = msgspec.json.Decoder(EmbeddingRequest)
_pooling_decoder = msgspec.json.Decoder(PoolingRequest)
_classify_decoder = msgspec.json.Decoder(ClassifyRequest)


async def embeddings(context: ServerContext, request: Request) -> Response:
    """Embeddings of one input or of many. Raises RequestError, OverloadedError and so on."""
    call = await take_in(context, request, _embedding_decoder, "embd")
    body = call.body
    if call.pooling.task != "embed":
        raise WrongModel(
            "this model classifies, it makes no embeddings; use /v1/score, /v1/rerank or /classify"
        )
    params = PoolingParams(
        task="embed", dimensions=body.dimensions, use_activation=body.use_activation
    )
    outputs = await call.run(await read_inputs(call), params)
    data = [
        Embedding(index=i, embedding=encoded(output.values, body.encoding_format))
        for i, output in enumerate(outputs)
    ]
    return call.respond_list(EmbeddingList, data)


async def pooling(context: ServerContext, request: Request) -> Response:
    """What the model makes of each input, pooled or by token. Raises RequestError and so on."""
    call = await take_in(context, request, _pooling_decoder, "pool")
    body = call.body
    params = PoolingParams(
        task=body.task, dimensions=body.dimensions, use_activation=body.use_activation
    )
    prompts = await read_inputs(call)
    if params.by_token:
        call.check_size(sum(len(prompt.token_ids) for prompt in prompts), body.dimensions)
    outputs = await call.run(prompts, params)
    data = [
        PooledData(index=i, data=encoded_rows(output.values, body.encoding_format))
        for i, output in enumerate(outputs)
    ]
    return call.respond_list(PooledList, data)


async def classify(context: ServerContext, request: Request) -> Response:
    """The labels of one input or of many. Raises RequestError, OverloadedError and so on."""
    call = await take_in(context, request, _classify_decoder, "classify")
    if call.pooling.task != "classify":
        raise WrongModel("this model makes embeddings, no classes; use /v1/embeddings")
    params = PoolingParams(task="classify", use_activation=call.body.use_activation)
    outputs = await call.run(await read_inputs(call), params)
    labels = call.pooling.labels
    data = [
        Classification(
            index=i,
            label=labels[int(output.values.argmax())],
            probs=output.values.tolist(),
            num_classes=len(labels),
        )
        for i, output in enumerate(outputs)
    ]
    return call.respond_list(ClassificationList, data)
