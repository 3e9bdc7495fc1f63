"""`/v1/responses`: create, fetch, cancel and delete."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.body import check_nesting, check_size, read_body
from pagemill.api.chat_generation import prepare, states
from pagemill.api.context import RequestScope, ServerContext
from pagemill.api.direct import DirectPath
from pagemill.api.generation import Generation
from pagemill.api.intake import Intake, intake_of
from pagemill.api.responses_api.answers import ResponseWriter
from pagemill.api.responses_api.convert import (
    Messages,
    chat_request,
    input_messages,
    output_messages,
)
from pagemill.api.responses_api.schema import (
    DeletedResponse,
    ResponseObject,
    ResponsesRequest,
    TextFormat,
    TextOptions,
)
from pagemill.api.responses_api.store import ResponseStore
from pagemill.api.schema import ChatRequest
from pagemill.api.sse import StreamProtocol
from pagemill.api.streaming import (
    collect,
    ignored_header,
    json_response,
    respond_whole,
    stream_response,
)
from pagemill.errors import InvalidParams, PageMillError

MAX_METADATA_BYTES = 16 * 1024
_WITH_EFFECT_HERE = ("metadata", "store")

_decoder = msgspec.json.Decoder(ResponsesRequest)
_stored_decoder = msgspec.json.Decoder(ResponseObject)


async def create(context: ServerContext, request: Request) -> Response:
    """A response in OpenAI's Responses API: whole, as a stream, or in the background."""
    body = await read_body(request, _decoder, context.limits.body_timeout)
    _check(body, context)
    owner = RequestScope.of(request).key_id
    history: Messages = []
    if body.previous_response_id is not None:
        history = context.stored.conversation(owner, body.previous_response_id)
    history += input_messages(body.input)
    intake = intake_of(context, request, body, chat_request(body, history))
    intake.ignored = [name for name in intake.ignored if name not in _WITH_EFFECT_HERE]
    generation, form = await prepare(intake, "resp")
    (state,) = states(intake.body, generation, form)
    response = _response(body, intake, generation)
    keep = _Keeper(context.stored, owner, history)
    writer = ResponseWriter(response, generation, state, keep)
    headers = ignored_header(intake.ignored)
    if body.background:
        return _start_background(context, generation, writer, keep)
    if body.stream:
        protocol = StreamProtocol(error=writer.error_event, done=b"")
        generation.direct = DirectPath(lambda: writer.events_of)
        return stream_response(context, writer.events(), headers, protocol, generation.direct)
    return await respond_whole(request, generation, writer, headers)


async def fetch(context: ServerContext, request: Request) -> Response:
    """A stored response, also while it is made."""
    if request.query_params.get("stream", "false") != "false":
        raise InvalidParams("a stored response cannot be streamed again", param="stream")
    stored = context.stored.get(RequestScope.of(request).key_id, request.path_params["response_id"])
    return Response(stored.response, media_type="application/json")


async def cancel(context: ServerContext, request: Request) -> Response:
    """End a response that is still made; one that is complete stays as it is."""
    owner, response_id = RequestScope.of(request).key_id, request.path_params["response_id"]
    stored = context.stored.get(owner, response_id)
    response = _stored_decoder.decode(stored.response)
    if response.status not in ("queued", "in_progress"):
        return json_response(response)
    if stored.task is not None:
        stored.task.cancel()
        await asyncio.wait({stored.task})
    else:
        await context.client.abort(context.admission.find([response_id]))
    response.status = "cancelled"
    return json_response(response)


async def delete(context: ServerContext, request: Request) -> Response:
    """Forget a stored response."""
    response_id = request.path_params["response_id"]
    stored = context.stored.delete(RequestScope.of(request).key_id, response_id)
    if stored.task is not None:
        stored.task.cancel()
    return json_response(DeletedResponse(response_id))


def _check(body: ResponsesRequest, context: ServerContext) -> None:
    if body.background and (body.stream or body.store is False):
        name = "stream" if body.stream else "store"
        raise InvalidParams(f"background does not go with {name}", param="background")
    check_size(body.tool_choice, context.limits.max_schema_bytes, "tool_choice")
    check_size(body.metadata, MAX_METADATA_BYTES, "metadata")
    if not isinstance(body.input, str):
        check_nesting(body.input, context.limits.max_nesting, "input")


def _response(
    body: ResponsesRequest, intake: Intake[ChatRequest], generation: Generation
) -> ResponseObject:
    text = body.text or TextOptions()
    return ResponseObject(
        id=generation.response_id,
        created_at=int(intake.context.clock.wall()),
        background=bool(body.background),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=intake.model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        reasoning={"effort": body.reasoning.effort if body.reasoning else None},
        store=body.store is not False,
        temperature=generation.params.temperature,
        text=TextOptions(format=text.format or TextFormat(type="text"), verbosity=text.verbosity),
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_p=generation.params.top_p,
    )


@dataclass(slots=True)
class _Keeper:
    """Stores every state of one response; once it is deleted it stays so."""

    store: ResponseStore
    owner: str
    history: Messages
    stored: bool = False
    task: asyncio.Task[None] | None = None

    def __call__(self, response: ResponseObject) -> None:
        if not response.store or (self.stored and (self.owner, response.id) not in self.store):
            return
        self.stored = True
        conversation = [*self.history, *output_messages(response.output)]
        self.store.put(self.owner, response.id, response, conversation, self.task)


def _start_background(
    context: ServerContext, generation: Generation, writer: ResponseWriter, keep: _Keeper
) -> Response:
    limit = context.limits.max_requests_per_key

    async def work() -> None:
        try:
            with context.admission.admit(keep.owner, limit):
                await collect(generation, writer)
        except PageMillError as error:
            writer.fail_with(error)
        finally:
            generation.scope.settle()
            writer.end_unfinished()

    keep.task = asyncio.create_task(work())
    keep(writer.response)
    return json_response(writer.response)
