"""What the application, the guard and the OpenAPI document need to know of one endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.context import ServerContext
from pagemill.api.middleware import Access

Handler: TypeAlias = Callable[[ServerContext, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """One row of the table of routes. Without `access` it needs a key.

    `generates` endpoints count against the limits and are refused while draining, those that have
    `streams` may answer with events, and those that have `uploads` take a form with a file. The
    first line of the handler's docstring is the endpoint's summary in the document.
    """

    method: str
    path: str
    handler: Handler
    request: type[msgspec.Struct] | None
    response: type[msgspec.Struct] | None
    access: Access = "key"
    generates: bool = False
    streams: bool = False
    uploads: bool = False


def get(
    path: str,
    handler: Handler,
    response: type[msgspec.Struct] | None = None,
    *,
    access: Access = "key",
) -> Endpoint:
    """A row for a GET endpoint."""
    return Endpoint("GET", path, handler, None, response, access)


def post(
    path: str,
    handler: Handler,
    request: type[msgspec.Struct] | None,
    response: type[msgspec.Struct],
    *,
    access: Access = "key",
    generates: bool = False,
    streams: bool | None = None,
    uploads: bool = False,
) -> Endpoint:
    """A row for a POST endpoint; one that generates streams unless it says otherwise."""
    streams = generates if streams is None else streams
    return Endpoint("POST", path, handler, request, response, access, generates, streams, uploads)


def pool(
    path: str, handler: Handler, request: type[msgspec.Struct], response: type[msgspec.Struct]
) -> Endpoint:
    """A row for an endpoint that makes vectors."""
    return post(path, handler, request, response, generates=True, streams=False)


def delete(path: str, handler: Handler, response: type[msgspec.Struct]) -> Endpoint:
    """A row for a DELETE endpoint."""
    return Endpoint("DELETE", path, handler, None, response)
