"""One line for every request: who asked for what, how it ended. Never the text of a prompt."""

from __future__ import annotations

import logging

import msgspec
from starlette.types import Scope

from pagemill.api.context import RequestScope

logger = logging.getLogger("pagemill.access")

MAX_PATH_LENGTH = 200


class AccessLine(msgspec.Struct):
    """What is written of a request. `key` is the beginning of the key's digest."""

    method: str
    path: str
    status: int
    ms: float
    request_id: str
    key: str
    client: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class AccessLog:
    """Writes to the logger "pagemill.access", as text or as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def write(self, scope: Scope, details: RequestScope, status: int, seconds: float) -> None:
        """Log a request that has ended; `status` 0 means that no response was begun."""
        if not logger.isEnabledFor(logging.INFO):
            return
        client = scope.get("client")
        line = AccessLine(
            method=scope["method"],
            path=_printable(scope["path"][:MAX_PATH_LENGTH]),
            status=status,
            ms=round(seconds * 1000, 1),
            request_id=details.request_id,
            key=details.key_id,
            client=client[0] if client else "-",
            prompt_tokens=details.prompt_tokens,
            cached_tokens=details.cached_tokens,
            completion_tokens=details.completion_tokens,
        )
        if self._as_json:
            logger.info("%s", msgspec.json.encode(line).decode())
        else:
            logger.info("%s", _as_text(line))


def _as_text(line: AccessLine) -> str:
    return (
        f"{line.client} {line.method} {line.path} {line.status} {line.ms} ms"
        f" prompt={line.prompt_tokens} cached={line.cached_tokens}"
        f" completion={line.completion_tokens} id={line.request_id} key={line.key}"
    )


def _printable(text: str) -> str:
    """Without control characters, which could forge lines."""
    return "".join(c if c.isprintable() else "?" for c in text)
