"""The HTTP application: every endpoint stands in `ENDPOINTS`, the layers around them below."""

from __future__ import annotations

from functools import partial

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from pagemill.api import admin, chat, completions, health, models, openapi, sleeping, tokenize
from pagemill.api import responses as r
from pagemill.api import schema as s
from pagemill.api.anthropic import endpoints as messages
from pagemill.api.anthropic import schema as a
from pagemill.api.batch import batches, files
from pagemill.api.batch import objects as b
from pagemill.api.context import ServerContext
from pagemill.api.endpoint import Endpoint, delete, get, pool, post
from pagemill.api.errors import exception_handlers
from pagemill.api.middleware import (
    BodyLimit,
    Guard,
    HeaderLimit,
    HostCheck,
    InsideGuard,
    KeyRing,
    RequestScopeMiddleware,
)
from pagemill.api.rate_limit import RATE_HEADERS, KeyBuckets, RateLimiter, RateLimits
from pagemill.api.responses_api import endpoints as responses
from pagemill.api.responses_api import schema as rs
from pagemill.api.tools.chat_format import ChatFormat
from pagemill.api.vectors import answers as va
from pagemill.api.vectors import endpoints as vectors
from pagemill.api.vectors import schema as v
from pagemill.api.vectors import scoring

# fmt: off
ENDPOINTS = (
    post("/v1/chat/completions", chat.create, s.ChatRequest, r.ChatCompletion, generates=True),
    post("/v1/completions", completions.create, s.CompletionRequest, r.Completion, generates=True),
    post("/v1/responses", responses.create, rs.ResponsesRequest, rs.ResponseObject, generates=True),
    get("/v1/responses/{response_id}", responses.fetch, rs.ResponseObject),
    delete("/v1/responses/{response_id}", responses.delete, rs.DeletedResponse),
    post("/v1/responses/{response_id}/cancel", responses.cancel, None, rs.ResponseObject),
    post("/v1/messages", messages.create, a.MessagesRequest, a.Message, generates=True),
    post("/v1/messages/count_tokens", messages.count_tokens, a.CountTokensRequest, a.TokenCount),
    post("/v1/files", files.upload, None, b.FileObject, uploads=True),
    get("/v1/files", files.list_files, b.FileList),
    get("/v1/files/{file_id}", files.fetch, b.FileObject),
    get("/v1/files/{file_id}/content", files.content),
    delete("/v1/files/{file_id}", files.delete, b.DeletedFile),
    post("/v1/batches", batches.create, b.CreateBatch, b.Batch),
    get("/v1/batches", batches.list_batches, b.BatchList),
    get("/v1/batches/{batch_id}", batches.fetch, b.Batch),
    post("/v1/batches/{batch_id}/cancel", batches.cancel, None, b.Batch),
    pool("/v1/embeddings", vectors.embeddings, v.EmbeddingRequest, va.EmbeddingList),
    pool("/v1/rerank", scoring.rerank, v.RerankRequest, va.Ranking),
    pool("/v2/rerank", scoring.rerank, v.RerankRequest, va.Ranking),
    pool("/rerank", scoring.rerank, v.RerankRequest, va.Ranking),
    pool("/v1/score", scoring.score, v.ScoreRequest, va.ScoreList),
    pool("/score", scoring.score, v.ScoreRequest, va.ScoreList),
    pool("/classify", vectors.classify, v.ClassifyRequest, va.ClassificationList),
    pool("/pooling", vectors.pooling, v.PoolingRequest, va.PooledList),
    get("/v1/models", models.list_models, r.ModelList),
    get("/v1/models/{model_id:path}", models.get_model, r.ModelCard),
    post("/tokenize", tokenize.tokenize, s.TokenizeRequest, r.TokenizeResponse),
    post("/detokenize", tokenize.detokenize, s.DetokenizeRequest, r.DetokenizeResponse),
    get("/health", health.health, r.HealthResponse, access="public"),
    get("/ready", health.ready, r.HealthResponse, access="public"),
    get("/version", health.version, r.VersionResponse),
    get("/metrics", health.metrics),
    get("/openapi.json", openapi.document),
    get("/docs", openapi.page),
    post("/abort", admin.abort, s.AbortRequest, r.AbortResponse, access="admin"),
    post("/reset_prefix_cache", admin.reset_prefix_cache, None, r.ResetResponse, access="admin"),
    post("/sleep", sleeping.sleep, None, r.SleepResponse, access="admin"),
    post("/wake_up", sleeping.wake_up, None, r.SleepResponse, access="admin"),
    get("/is_sleeping", sleeping.is_sleeping, r.SleepResponse, access="admin"),
    get("/load", admin.load, r.LoadResponse, access="admin"),
    get("/server_info", admin.server_info, r.ServerInfo, access="admin"),
)
# fmt: on
FORM_BYTES = 64 * 1024
BATCH_URLS = tuple(endpoint.path for endpoint in ENDPOINTS if endpoint.generates)


def build_app(context: ServerContext) -> Starlette:
    """The application over one engine. It starts nothing and owns nothing of `context`.

    Raises ConfigError for an unknown parser in the settings.
    """
    settings = context.settings
    ChatFormat.of("", settings.tool_call_parser, settings.reasoning_parser)  # are they known?
    layers = [
        Middleware(RequestScopeMiddleware, context=context),
        Middleware(
            HeaderLimit,
            max_bytes=settings.limits.max_header_bytes,
            max_headers=settings.limits.max_headers,
        ),
        Middleware(HostCheck, allowed=settings.allowed_hosts),
        Middleware(
            BodyLimit, max_bytes=settings.limits.max_body_bytes, by_path=_upload_limits(context)
        ),
    ]
    if settings.allowed_origins:
        layers.insert(1, _cors(settings.allowed_origins))
    keys = KeyRing.of(settings.keys, settings.admin_keys)
    rates = _rate_limiter(context, keys)
    app = Starlette(
        routes=[_route(endpoint, context, keys, rates) for endpoint in ENDPOINTS],
        middleware=layers,
        exception_handlers=exception_handlers(),
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host header
    app.state.endpoints = ENDPOINTS
    return app


def build_batch_app(context: ServerContext) -> Starlette:
    """The endpoints of `BATCH_URLS` for calls from inside the process, see `batch.calls`.

    They were let in when their batch was: no key, no limit of a connection applies to them.
    """
    return Starlette(
        routes=[
            Route(
                endpoint.path,
                partial(endpoint.handler, context),
                methods=[endpoint.method],
                middleware=[Middleware(InsideGuard, route=endpoint.path)],
            )
            for endpoint in ENDPOINTS
            if endpoint.generates
        ],
        middleware=[Middleware(RequestScopeMiddleware, context=context)],
        exception_handlers=exception_handlers(),
    )


def _upload_limits(context: ServerContext) -> dict[str, int]:
    """The bodies that may be larger than others: a file, and a little for its form."""
    if context.batches is None:
        return {}
    max_bytes = context.batches.limits.max_file_bytes + FORM_BYTES
    return {endpoint.path: max_bytes for endpoint in ENDPOINTS if endpoint.uploads}


def _rate_limiter(context: ServerContext, keys: KeyRing) -> RateLimiter:
    limits = context.limits
    rates = RateLimits(limits.requests_per_minute, limits.tokens_per_minute)
    now = context.clock.monotonic
    if context.rate_file is None:
        return KeyBuckets(rates, keys.ids, now)
    from pagemill.api.shared_cells import SharedCells  # where several processes are, fcntl is

    shared = SharedCells(context.rate_file, KeyBuckets.size(len(keys.ids)))
    return KeyBuckets(rates, keys.ids, now, cells=shared.numbers, lock=shared)


def _route(endpoint: Endpoint, context: ServerContext, keys: KeyRing, rates: RateLimiter) -> Route:
    guard = Middleware(
        Guard,
        context=context,
        keys=keys,
        rates=rates,
        route=endpoint.path,
        access=endpoint.access,
        generates=endpoint.generates,
    )
    handler = partial(endpoint.handler, context)
    return Route(endpoint.path, handler, methods=[endpoint.method], middleware=[guard])


def _cors(origins: tuple[str, ...]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["DELETE", "GET", "POST"],
        allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
        expose_headers=["x-request-id", "retry-after", *RATE_HEADERS],
    )
