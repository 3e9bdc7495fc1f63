"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's API."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.anthropic.answers import ANTHROPIC_STREAM, MessageWriter
from pagemill.api.anthropic.convert import chat_request
from pagemill.api.anthropic.schema import CountTokensRequest, MessagesRequest, TokenCount
from pagemill.api.body import read_body
from pagemill.api.chat_generation import prepare, states
from pagemill.api.context import ServerContext
from pagemill.api.direct import DirectPath
from pagemill.api.intake import intake_of
from pagemill.api.streaming import (
    ignored_header,
    json_response,
    respond_whole,
    stream_response,
)

_decoder = msgspec.json.Decoder(MessagesRequest)
_count_decoder = msgspec.json.Decoder(CountTokensRequest)


async def create(context: ServerContext, request: Request) -> Response:
    """A message in Anthropic's API, whole or as a stream of events."""
    body = await read_body(request, _decoder, context.limits.body_timeout)
    intake = intake_of(context, request, body, chat_request(body))
    generation, form = await prepare(intake, "msg")
    (state,) = states(intake.body, generation, form)
    writer = MessageWriter(intake.model, generation, state)
    headers = ignored_header(intake.ignored)
    if body.stream:
        generation.direct = DirectPath(lambda: writer.events_of)
        events = writer.events()
        return stream_response(context, events, headers, ANTHROPIC_STREAM, generation.direct)
    return await respond_whole(request, generation, writer, headers)


async def count_tokens(context: ServerContext, request: Request) -> Response:
    """The number of tokens of a message's prompt, in Anthropic's API."""
    body = await read_body(request, _count_decoder, context.limits.body_timeout)
    intake = intake_of(context, request, body, chat_request(body))
    generation, _ = await prepare(intake, "msg")
    num_tokens = len(generation.prompts[0].token_ids)
    return json_response(TokenCount(num_tokens), ignored_header(intake.ignored))
