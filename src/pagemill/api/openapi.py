"""`GET /openapi.json`, made from the table of endpoints, and `GET /docs`, a page that shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from pagemill.api.context import ServerContext
from pagemill.api.docs_page import PAGE
from pagemill.api.endpoint import Endpoint
from pagemill.api.errors import ANTHROPIC_PATH
from pagemill.api.responses import AnthropicErrorResponse, ErrorResponse
from pagemill.version import __version__

Json = dict[str, Any]

_PATH_PARAM = re.compile(r"{(\w+)(?::\w+)?}")
_REF_TEMPLATE = "#/components/schemas/{name}"
_UPLOAD = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["file", "purpose"],
            "properties": {
                "file": {"type": "string", "format": "binary"},
                "purpose": {"const": "batch"},
            },
        }
    }
}
_ERRORS = {
    400: "A field is wrong",
    401: "The API key is missing or wrong",
    403: "The key may not do this",
    404: "There is no such model",
    408: "The body did not arrive in time",
    409: "The model was woken before it slept",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "The key has too many requests open, or uses too much a minute",
    431: "The headers are too large",
    499: "The request was aborted",
    500: "The server failed",
    503: "Loading, overloaded or shutting down",
}


async def document(context: ServerContext, request: Request) -> Response:
    """This document."""
    body = msgspec.json.encode(build_document(request.app.state.endpoints))
    return Response(body, media_type="application/json")


async def page(context: ServerContext, request: Request) -> Response:
    """A page for people."""
    return HTMLResponse(PAGE, headers={"content-security-policy": _PAGE_POLICY})


_PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def build_document(endpoints: Sequence[Endpoint]) -> Json:
    """The OpenAPI 3.1 document of these endpoints."""
    types = {t for e in endpoints for t in (e.request, e.response) if t is not None}
    ordered = [*sorted(types, key=lambda t: t.__name__), AnthropicErrorResponse, ErrorResponse]
    _, components = msgspec.json.schema_components(ordered, ref_template=_REF_TEMPLATE)
    paths: dict[str, Json] = {}
    for endpoint in endpoints:
        path = _PATH_PARAM.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "PageMill", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> Json:
    summary = (endpoint.handler.__doc__ or "").partition("\n")[0]
    operation: Json = {"summary": summary, "responses": _responses(endpoint)}
    if endpoint.access != "public":
        operation["security"] = [{"key": []}]
    names = _PATH_PARAM.findall(endpoint.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if endpoint.uploads:
        operation["requestBody"] = {"required": True, "content": _UPLOAD}
    if endpoint.request is not None:
        operation["requestBody"] = {"required": True, "content": _json_of(endpoint.request)}
    return operation


def _responses(endpoint: Endpoint) -> Json:
    ok: Json = {"description": "OK"}
    if endpoint.response is not None:
        ok["content"] = _json_of(endpoint.response)
    if endpoint.streams:
        ok["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    anthropic = endpoint.path.startswith(ANTHROPIC_PATH)
    error = _json_of(AnthropicErrorResponse if anthropic else ErrorResponse)
    responses: Json = {"200": ok}
    for status, description in _ERRORS.items():
        responses[str(status)] = {"description": description, "content": error}
    if endpoint.access == "public":
        responses["503"] = {"description": "Not now", "content": ok["content"]}
    return responses


def _json_of(kind: type[msgspec.Struct]) -> Json:
    reference = _REF_TEMPLATE.format(name=kind.__name__)
    return {"application/json": {"schema": {"$ref": reference}}}
