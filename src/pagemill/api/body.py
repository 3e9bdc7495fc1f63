"""Reading and decoding request bodies."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Receive

from pagemill.api.errors import (
    ClientDisconnected,
    RequestTimeout,
    UnsupportedMediaType,
    describe_validation_error,
)
from pagemill.errors import InvalidParams

T = TypeVar("T", bound=msgspec.Struct)

_JSON_TYPES = ("application/json", "text/json")


async def read_body(request: Request, decoder: msgspec.json.Decoder[T], timeout: float) -> T:
    """The decoded JSON body. Raises RequestError with the path of the field at fault.

    A body that is not declared as JSON is refused: that is what keeps other web pages from
    posting to a server on the same machine, since browsers ask first before sending JSON.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared not in _JSON_TYPES and not declared.endswith("+json"):
        raise UnsupportedMediaType("The Content-Type must be application/json")
    try:
        async with asyncio.timeout(timeout):
            body = await _read_all(request.receive)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {timeout:g} s") from None
    return decode(body, decoder)


async def _read_all(receive: Receive) -> bytes:
    """The body, which nobody else reads. Raises ClientDisconnected."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode and validate. Raises InvalidParams."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise describe_validation_error(error) from None
    except msgspec.DecodeError as error:
        raise InvalidParams(f"The body is not valid JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidParams(f"The body is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise InvalidParams("The body is nested too deeply") from None


def check_nesting(value: Any, limit: int, param: str) -> None:
    """Refuse values nested deeper than `limit`. Raises InvalidParams."""
    level = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise InvalidParams(f"{param} is nested deeper than {limit} levels", param=param)


def check_size(value: Any, limit: int, param: str) -> None:
    """Refuse values that take more than `limit` bytes. Raises InvalidParams.

    Also those with whole numbers beyond 64 bits, which cannot travel to the engine.
    """
    try:
        size = len(msgspec.msgpack.encode(value))
    except OverflowError:
        raise InvalidParams(f"{param} has a number beyond 64 bits", param=param) from None
    if size > limit:
        raise InvalidParams(f"{param} is larger than {limit} bytes", param=param)


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
