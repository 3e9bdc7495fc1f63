"""The first steps of every generating endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
from starlette.requests import Request

from pagemill.api.body import read_body
from pagemill.api.context import RequestScope, ServerContext
from pagemill.api.sampling import refuse_unsupported
from pagemill.api.schema import ChatRequest, GenerationFields
from pagemill.frontend.base import Renderer

B = TypeVar("B", bound=GenerationFields)


@dataclass(slots=True)
class Intake(Generic[B]):
    """A decoded request whose model is there; `ignored` names the fields without effect."""

    body: B
    context: ServerContext
    renderer: Renderer
    scope: RequestScope
    model: str
    ignored: list[str]


async def take_in(
    context: ServerContext, request: Request, decoder: msgspec.json.Decoder[B]
) -> Intake[B]:
    """Read a request. Raises RequestError, OverloadedError, EngineDeadError."""
    body = await read_body(request, decoder, context.limits.body_timeout)
    renderer = context.require_ready()
    model = context.check_model(body.model)
    context.require_generation()
    scope = RequestScope.of(request)
    scope.model = model
    scope.adopt_id(body.request_id)
    return Intake(body, context, renderer, scope, model, refuse_unsupported(body))


def intake_of(
    context: ServerContext, request: Request, given: msgspec.Struct, chat: ChatRequest
) -> Intake[ChatRequest]:
    """For a request in another API's terms, `given`, that was turned into a chat request.

    Raises RequestError, OverloadedError, EngineDeadError.
    """
    renderer = context.require_ready()
    model = context.check_model(chat.model)
    context.require_generation()
    scope = RequestScope.of(request)
    scope.model = model
    return Intake(chat, context, renderer, scope, model, refuse_unsupported(given))
