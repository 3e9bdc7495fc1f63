"""Pure ASGI layers around the routes: request ids, host check, CORS, body limit, keys.

The outermost one is the only place of the HTTP side that catches every exception.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagemill.api.access_log import AccessLog
from pagemill.api.context import RequestScope, ServerContext, is_safe_request_id
from pagemill.api.errors import Forbidden, HeadersTooLarge, MisdirectedHost, error_response
from pagemill.api.rate_limit import NOBODY, RateLimiter
from pagemill.errors import BodyTooLarge, InvalidParams, Unauthorized

logger = logging.getLogger(__name__)

Access = Literal["public", "key", "admin"]

_HASHED_KEY = re.compile("sha256:([0-9a-fA-F]{64})")
_REJECTIONS = {429: "rate_limit", 503: "overloaded"}
_FIRST_ERROR = 400
_ID_LENGTH = 8
REQUEST_ID_HEADER = b"x-request-id"
OWNER_KEY = "pagemill.owner"  # in the scope of calls from inside: whose they are


class RequestScopeMiddleware:
    """Outermost: gives every request its id, logs it, and answers what nobody handled with 500."""

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app = app
        self._context = context
        self._log = AccessLog(as_json=context.settings.json_access_log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        details = RequestScope(_request_id(scope))
        scope["pagemill"] = details
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                echo = (REQUEST_ID_HEADER, details.request_id.encode())
                message["headers"] = [*message.get("headers", ()), echo]
            await send(message)

        started = self._context.clock.monotonic()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            logger.exception("request %s failed", details.request_id)
            if status == 0:
                await error_response(error, scope["path"])(scope, receive, send_with_id)
        finally:
            seconds = self._context.clock.monotonic() - started
            details.seconds = seconds
            self._count(scope, details, status, seconds)
            self._log.write(scope, details, status, seconds)

    def _count(self, scope: Scope, details: RequestScope, status: int, seconds: float) -> None:
        metrics = self._context.metrics
        metrics.observe_http(_known_method(scope), details.route or "other", status, seconds)
        if details.generates and status in _REJECTIONS:
            metrics.observe_rejection(_REJECTIONS[status])
        if details.generates and self._context.tracer is not None:
            self._context.tracer.record(scope, details, status, self._context.clock.wall())


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if is_safe_request_id(given) else secrets.token_hex(16)


def _known_method(scope: Scope) -> str:
    method = str(scope["method"])
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    return method if method in known else "other"


class HostCheck:
    """Refuses requests for a Host that is not ours: a web page that rebinds DNS sends its own."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self._app = app
        self._allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._allowed:
            host = host_name(Headers(scope=scope).get("host", ""))
            if host not in self._allowed:
                error = MisdirectedHost(f"This server does not answer for the host {host[:200]!r}")
                await error_response(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_name(header: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


class BodyLimit:
    """Counts the body while it is read. Raises BodyTooLarge out of `receive`.

    `by_path` has other limits for some paths.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, by_path: Mapping[str, int] | None = None
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._by_path = by_path or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
            error = InvalidParams("The Content-Length is not a number")
            await error_response(error, scope["path"])(scope, receive, send)
            return
        max_bytes = self._by_path.get(scope["path"], self._max_bytes)
        if int(declared) > max_bytes:
            await error_response(_too_large(max_bytes), scope["path"])(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            return message

        await self._app(scope, counted, send)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {max_bytes} bytes")


class HeaderLimit:
    """Refuses requests with more or larger headers than any client needs."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_headers: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_headers = max_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        num_bytes = sum(len(name) + len(value) for name, value in headers)
        num_bytes += len(scope.get("query_string", b"")) + len(scope.get("raw_path") or b"")
        if num_bytes > self._max_bytes or len(headers) > self._max_headers:
            error = HeadersTooLarge(
                f"The headers have more than {self._max_bytes} bytes, or are more than "
                f"{self._max_headers}"
            )
            await error_response(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)


@dataclass(frozen=True)
class KeyRing:
    """The keys that may enter, as SHA-256 digests."""

    keys: tuple[bytes, ...]
    admin_keys: tuple[bytes, ...]

    @classmethod
    def of(cls, keys: tuple[str, ...], admin_keys: tuple[str, ...]) -> KeyRing:
        """A key may be given as "sha256:" and the 64 hexadecimal digits of its digest."""
        return cls(tuple(map(_digest, keys)), tuple(map(_digest, admin_keys)))

    @property
    def ids(self) -> tuple[str, ...]:
        """All that `check` may return."""
        return (NOBODY, *(_key_id(digest) for digest in (*self.keys, *self.admin_keys)))

    def check(self, authorization: str, access: Access) -> str:
        """The caller's id for counts and logs. Raises Unauthorized, Forbidden.

        An admin key opens everything. Every key is compared, in constant time each, so neither
        timing nor the order of the keys tells anything.
        """
        if access == "admin" and not self.admin_keys:
            raise Forbidden("Control endpoints are closed: the server has no admin key")
        if access == "public" or (access == "key" and not self.keys):
            return NOBODY
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        is_bearer = scheme.lower() == "bearer"
        is_admin = _contains(self.admin_keys, digest) and is_bearer
        is_user = _contains(self.keys, digest) and is_bearer
        if not (is_admin or is_user):
            raise Unauthorized("The API key is missing or wrong")
        if access == "admin" and not is_admin:
            raise Forbidden("This endpoint needs the admin key")
        return _key_id(digest)


def _digest(key: str) -> bytes:
    hashed = _HASHED_KEY.fullmatch(key)
    return bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(key.encode()).digest()


def _key_id(digest: bytes) -> str:
    return digest.hex()[:_ID_LENGTH]


def _contains(digests: tuple[bytes, ...], digest: bytes) -> bool:
    matches = [hmac.compare_digest(known, digest) for known in digests]
    return any(matches)


def _authorization(scope: Scope) -> str:
    """What the client shows: `Authorization`, or Anthropic's `X-Api-Key` in the same form."""
    headers = Headers(scope=scope)
    key = headers.get("x-api-key")
    return headers.get("authorization", f"Bearer {key}" if key else "")


class Guard:
    """Innermost, one for each route: checks the key and holds a place for generating requests.

    Because it belongs to the route and not to a path prefix, a route without one cannot exist.
    """

    def __init__(
        self,
        app: ASGIApp,
        context: ServerContext,
        keys: KeyRing,
        rates: RateLimiter,
        route: str,
        access: Access,
        generates: bool,
    ) -> None:
        self._app = app
        self._context = context
        self._keys = keys
        self._rates = rates
        self._route = route
        self._access = access
        self._generates = generates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        details: RequestScope = scope["pagemill"]
        details.route, details.generates = self._route, self._generates
        details.key_id = self._keys.check(_authorization(scope), self._access)
        if not self._generates:
            await self._app(scope, receive, send)
            return
        with self._context.admission.admit(
            details.key_id, self._context.limits.max_requests_per_key
        ):
            self._rates.take(details.key_id)
            details.spend = partial(self._rates.spend, details.key_id)
            try:
                await self._app(scope, receive, self._with_rates(details, send))
            finally:
                details.settle()

    def _with_rates(self, details: RequestScope, send: Send) -> Send:
        """`send` with the headers that say what the key has left. An error costs no tokens."""
        key_id = details.key_id
        if not self._rates.headers(key_id):
            return send

        async def send_with_rates(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= _FIRST_ERROR:
                    details.spend = None
                left = self._rates.headers(key_id).items()
                own = [(name.encode(), value.encode()) for name, value in left]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        return send_with_rates


class InsideGuard:
    """In the place of `Guard` for calls from inside the process, whose owner is in the scope."""

    def __init__(self, app: ASGIApp, route: str) -> None:
        self._app = app
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        details: RequestScope = scope["pagemill"]
        details.route, details.key_id = self._route, scope[OWNER_KEY]
        await self._app(scope, receive, send)
