"""The short way of a streamed token: from the engine's message to the socket in one call.

A task that waits, a generator that yields and a middleware that passes on cost several times what
the token itself does. So once a stream has begun, and as long as its client keeps up, updates are
written from where they arrive. Whatever cannot be written at once takes the usual way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Scope

from pagemill.frontend.outputs import ChoiceUpdate

EXTENSION = "pagemill.direct_write"  # in ASGI's scope["extensions"], where the server has it

Encode = Callable[[ChoiceUpdate], bytes]


class BodyWriter(Protocol):
    """Writes to a response whose headers have been sent and whose length is open."""

    def is_ready(self) -> bool:
        """Whether a write would go out at once: the client is there and keeps up."""
        ...

    def write(self, data: bytes) -> None:
        """Write a part of the body; nothing for no data, which would end it."""
        ...

    def hold(self) -> None:
        """Keep what ASGI's `send` is given, until `release`."""
        ...

    def release(self) -> None:
        """Write what was kept, all at once."""
        ...

    def abort(self) -> None:
        """Drop the connection, and what the client has not taken."""
        ...


def body_writer(scope: Scope) -> BodyWriter | None:
    """The server's writer for this request, if it has one."""
    extensions: dict[str, Any] = scope.get("extensions") or {}
    writer: BodyWriter | None = extensions.get(EXTENSION)
    return writer


class DirectPath:
    """Writes the updates of one stream with one choice. Closed until the stream has begun.

    `make_encode` is called then, when everything that the events repeat is known.
    `wrote` is set by every write, for whoever wants to know whether the stream was silent.
    """

    __slots__ = ("_encode", "_error", "_make_encode", "_writer", "wrote")

    def __init__(self, make_encode: Callable[[], Encode]) -> None:
        self._make_encode = make_encode
        self._encode: Encode | None = None
        self._error: Exception | None = None
        self._writer: BodyWriter | None = None
        self.wrote = False

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    def open(self, writer: BodyWriter | None) -> None:
        """Write to `writer` from now on."""
        if writer is not None:
            self._encode = self._make_encode()
            self._writer = writer

    def close(self) -> None:
        """Write nothing any more."""
        self._writer = None

    def write(self, update: ChoiceUpdate) -> bool:
        """Whether the update was written. The last one never is: the stream's end follows it."""
        writer, encode = self._writer, self._encode
        if writer is None or encode is None or update.finish_reason is not None:
            return False
        # Asked first: encoding may move a parser on, so it must not be done twice.
        if not writer.is_ready():
            return False
        try:
            writer.write(encode(update))
        except Exception as error:  # noqa: BLE001 - `check` raises it again
            # The reader of the update finds it by `check`: to encode again might tell it twice.
            self._error = error
            self.close()
            return False
        self.wrote = True
        return True

    def check(self) -> None:
        """Raises what an update met that could not be written, for the usual way to tell."""
        if self._error is not None:
            raise self._error
