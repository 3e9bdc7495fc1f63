"""Control endpoints, behind the admin key."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.body import read_body
from pagemill.api.context import ServerContext
from pagemill.api.responses import (
    AbortResponse,
    EngineSummary,
    LoadResponse,
    ResetResponse,
    ServerInfo,
)
from pagemill.api.schema import AbortRequest
from pagemill.api.streaming import json_response
from pagemill.version import __version__

_abort_decoder = msgspec.json.Decoder(AbortRequest)


async def reset_prefix_cache(context: ServerContext, request: Request) -> Response:
    """Forget all cached prefixes. Raises OverloadedError, EngineDeadError."""
    context.require_loaded()
    result = await context.client.control("reset_prefix_cache")
    return json_response(ResetResponse(success=result is not False))


async def abort(context: ServerContext, request: Request) -> Response:
    """Abort requests; their clients get what is there, with finish_reason "abort"."""
    body = await read_body(request, _abort_decoder, context.limits.body_timeout)
    context.require_loaded()
    found = context.admission.find(body.request_ids)
    aborted = await context.client.abort(found)
    elsewhere = await context.peers.abort(body.request_ids)
    return json_response(AbortResponse(aborted=aborted + elsewhere))


async def load(context: ServerContext, request: Request) -> Response:
    """What is in flight now."""
    stats, num_open = context.client.stats, context.admission.num_open
    return json_response(
        LoadResponse(
            server_load=num_open,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_cache_usage=stats.kv_cache_usage,
        )
    )


async def server_info(context: ServerContext, request: Request) -> Response:
    """The loaded engine and the limits in force; no keys. Raises OverloadedError."""
    context.require_loaded()
    info = context.client.info
    names = EngineSummary.__struct_fields__
    return json_response(
        ServerInfo(
            version=__version__,
            models=list(context.served_model_names),
            engine=EngineSummary(**{name: getattr(info, name) for name in names}),
            limits=msgspec.to_builtins(context.limits),
            default_params=dict(context.default_params),
        )
    )
