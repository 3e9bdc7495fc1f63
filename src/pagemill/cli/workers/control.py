"""What the owner asks of a frontend, over a local socket: one question, one answer, no pickle."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 64 * 2**20
CALL_SECONDS = 3.0


class Question(msgspec.Struct, array_like=True, frozen=True):
    """`method` is "ready", "metrics" or "abort"."""

    method: str
    request_ids: list[str] = []


Answer = Callable[[Question], Awaitable[bytes]]


async def serve_control(path: str, answer: Answer) -> asyncio.AbstractServer:
    """Answer questions at `path` with what `answer` gives."""
    decoder = msgspec.msgpack.Decoder(Question)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            data = await answer(decoder.decode(await _read(reader)))
            writer.write(_LENGTH.pack(len(data)) + data)
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(handle, path)


async def ask(path: str, question: Question) -> bytes | None:
    """The answer, or None from a process that is not there or does not answer in time."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                data = msgspec.msgpack.encode(question)
                writer.write(_LENGTH.pack(len(data)) + data)
                return await _read(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return None


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > _MAX_BYTES:
        raise ConnectionError("a message between frontends is too long")
    return await reader.readexactly(length)


def decode(data: bytes | None, kind: Any) -> Any:
    """An answer as `kind`; None when there was none."""
    return None if data is None else msgspec.msgpack.decode(data, type=kind)
