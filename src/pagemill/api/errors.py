"""Exceptions to responses, in OpenAI's shape: {"error": {message, type, param, code}}.

Below `/v1/messages` they have Anthropic's: {"type": "error", "error": {type, message}}.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from pagemill.api.responses import (
    AnthropicError,
    AnthropicErrorResponse,
    ErrorBody,
    ErrorResponse,
)
from pagemill.errors import (
    EngineDeadError,
    InvalidParams,
    OverloadedError,
    PageMillError,
    RequestAborted,
    RequestError,
)

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
MAX_MESSAGE_LENGTH = 2000
MAX_PARAM_LENGTH = 200

_HTTP_KINDS = {
    404: ("NotFoundError", "There is nothing at {method} {path}"),
    405: ("MethodNotAllowedError", "{path} does not allow {method}"),
}
ANTHROPIC_PATH = "/v1/messages"
_INVALID = "invalid_request_error"
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_FIELD_IN_MESSAGE = re.compile(r"(unknown|required) field `(.*)`$", re.DOTALL)
_PATH_IN_MESSAGE = re.compile(r" - at (?:`key` in )?`\$([^`]*)`$")


class Forbidden(RequestError):
    """The key is valid but may not do this."""

    status = 403
    kind = "PermissionDeniedError"


class UnsupportedMediaType(RequestError):
    """The body is not declared as JSON."""

    status = 415
    kind = "UnsupportedMediaTypeError"


class RequestTimeout(RequestError):
    """The body did not arrive in time."""

    status = 408
    kind = "RequestTimeoutError"


class TooManyRequests(RequestError):
    """A key has as many requests open as it may, or sends them too fast."""

    status = 429
    kind = "RateLimitError"

    def __init__(
        self, message: str, retry_after: int = 1, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers or {}


class HeadersTooLarge(RequestError):
    """The headers exceed the limit."""

    status = 431
    kind = "RequestHeaderFieldsTooLarge"


class MisdirectedHost(RequestError):
    """The Host header names a host that this server does not answer for."""

    kind = "InvalidHostError"


class GenerationError(PageMillError):
    """The engine gave a request up; the cause is in the log, not in the answer."""


class ClientDisconnected(PageMillError):
    """The client left before its answer was complete."""


def describe_validation_error(error: msgspec.ValidationError, within: str = "") -> InvalidParams:
    """A readable message, and the path of the field at fault ("tools[0].function") as `param`.

    `within` is the field that holds the value that was checked.
    """
    text = str(error)
    path_match = _PATH_IN_MESSAGE.search(text)
    path = within + (path_match.group(1) if path_match else "")
    what = text[: path_match.start()] if path_match else text
    field_match = _FIELD_IN_MESSAGE.search(what)
    if field_match:
        kind, name = field_match.groups()
        path = f"{path}.{name}"
        what = "unknown field" if kind == "unknown" else "this field is required"
    path = path.lstrip(".")
    message = f"{path or 'request body'}: {what.replace('`', '')}"
    return InvalidParams(message[:MAX_MESSAGE_LENGTH], param=path[:MAX_PARAM_LENGTH] or None)


def error_body(error: Exception) -> ErrorBody:
    """What a client may know of an error: never addresses, paths or tracebacks."""
    match error:
        case RequestError():
            return ErrorBody(error.message, error.kind, error.param, error.status)
        case OverloadedError():
            return ErrorBody(error.message, "ServiceUnavailableError", None, 503)
        case RequestAborted():
            message = "The request was aborted"
            return ErrorBody(message, "RequestAbortedError", None, CLIENT_CLOSED_REQUEST)
        case EngineDeadError():
            return ErrorBody("The engine has stopped", "InternalServerError", None, 500)
        case GenerationError():
            return ErrorBody(str(error), "InternalServerError", None, 500)
        case _:
            return ErrorBody("Internal server error", "InternalServerError", None, 500)


def error_response(error: Exception, path: str = "") -> Response:
    """The response for an error at `path`, with the headers that its status calls for."""
    body = error_body(error)
    headers: dict[str, str] = {}
    if isinstance(error, OverloadedError | TooManyRequests):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, TooManyRequests):
        headers |= error.headers
    elif body.code == 401:
        headers["www-authenticate"] = "Bearer"
    return _json(body, path, headers)


def error_content(body: ErrorBody, path: str) -> msgspec.Struct:
    """The JSON of an error at `path`."""
    if not path.startswith(ANTHROPIC_PATH):
        return ErrorResponse(body)
    kind = _ANTHROPIC_KINDS.get(body.code, "api_error" if body.code >= 500 else _INVALID)
    return AnthropicErrorResponse(AnthropicError(kind, body.message))


def _json(body: ErrorBody, path: str, headers: Mapping[str, str] | None = None) -> Response:
    content = msgspec.json.encode(error_content(body, path))
    return Response(content, body.code, headers=headers, media_type="application/json")


async def _handle(request: Request, error: Exception) -> Response:
    path = request.scope["path"]
    response = error_response(error, path)
    if response.status_code == 500:
        logger.error("%s failed: %s", path, error)
    return response


async def _handle_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    kind, message = "HTTPError", error.detail
    if error.status_code in _HTTP_KINDS:
        kind, template = _HTTP_KINDS[error.status_code]
        message = template.format(method=request.method, path=path[:200])
    return _json(ErrorBody(message, kind, None, error.status_code), path, error.headers)


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def exception_handlers() -> dict[type[Exception], ExceptionHandler]:
    """For Starlette; exceptions that are not PageMill's go on to the outermost middleware."""
    return {
        PageMillError: _handle,
        HTTPException: _handle_http,
        ClientDisconnected: _handle_disconnect,
    }
