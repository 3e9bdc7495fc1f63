"""Whether the server lives (`/health`), takes requests (`/ready`), and its numbers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.context import RequestScope, ServerContext
from pagemill.api.responses import HealthResponse, VersionResponse
from pagemill.api.streaming import json_response
from pagemill.errors import PageMillError
from pagemill.frontend.outputs import Prompt
from pagemill.params import PoolingParams, SamplingParams
from pagemill.version import __version__

PROBE_TIMEOUT_SECONDS = 30.0


async def health(context: ServerContext, request: Request) -> Response:
    """200 while the engine's loop turns; with `?generate=1` only if it makes a token."""
    state = _state(context)
    if context.client.stats.sleep_level:
        return _respond(state)  # no token can be made, which is no fault
    if state.status == "ok" and request.query_params.get("generate") in ("1", "true"):
        async with context.probe_lock:
            state = await _probe(context, RequestScope.of(request))
    return _respond(state)


async def ready(context: ServerContext, request: Request) -> Response:
    """200 when new requests are taken: loaded, alive and not draining."""
    state = _state(context)
    if state.status == "ok" and context.admission.draining:
        state = HealthResponse("draining")
    elif state.status == "ok" and context.client.stats.sleep_level:
        state = HealthResponse("sleeping")
    return _respond(state)


def _state(context: ServerContext) -> HealthResponse:
    status = context.client.status
    if status.state == "failed":
        return HealthResponse("failed", "the engine has stopped")
    if status.state == "loading" or context.renderer is None:
        return HealthResponse("loading", status.phase)
    return HealthResponse("ok")


async def _probe(context: ServerContext, scope: RequestScope) -> HealthResponse:
    prompt = context.require_ready().check_token_ids([0])
    request_id = f"health-{scope.request_id}"
    pools = context.client.info.pooling is not None
    work = _pool_one if pools else _generate_one
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            return await work(context, prompt, request_id)
    except TimeoutError:
        return HealthResponse("failed", f"no token within {PROBE_TIMEOUT_SECONDS:g} s")
    except PageMillError:
        return HealthResponse("failed", "the probe was refused")


async def _generate_one(context: ServerContext, prompt: Prompt, request_id: str) -> HealthResponse:
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    updates = context.client.generate(prompt, params, request_id=request_id)
    async with aclosing(updates):
        async for update in updates:
            if update.finish_reason == "error":
                return HealthResponse("failed", "the probe's generation failed")
    return HealthResponse("ok")


async def _pool_one(context: ServerContext, prompt: Prompt, request_id: str) -> HealthResponse:
    await context.client.pool([prompt], PoolingParams(), request_id=request_id)
    return HealthResponse("ok")


def _respond(state: HealthResponse) -> Response:
    response = json_response(state)
    response.status_code = 200 if state.status == "ok" else 503
    return response


async def version(context: ServerContext, request: Request) -> Response:
    """The server's version."""
    return json_response(VersionResponse(__version__))


async def metrics(context: ServerContext, request: Request) -> Response:
    """The metrics, for Prometheus."""
    others = await context.peers.metrics()
    body, content_type = context.metrics.render(request.headers.get("accept", ""), others)
    return Response(body, headers={"content-type": content_type})
