"""Responses kept in memory, so that clients can fetch them and go on from them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pagemill.errors import RequestError


class UnknownResponse(RequestError):
    """There is no such response, or not any more, or it belongs to another key."""

    status = 404
    kind = "NotFoundError"


@dataclass(slots=True)
class StoredResponse:
    """A response as JSON, and as MessagePack the conversation up to its end."""

    response: bytes
    conversation: bytes
    task: asyncio.Task[None] | None = None  # what makes it in the background

    @property
    def size(self) -> int:
        return len(self.response) + len(self.conversation)


@dataclass
class ResponseStore:
    """The last responses, by the id of the key that owns them and their own.

    Those used longest ago make room: at most `max_entries` stay, and about `max_bytes`.
    """

    max_entries: int = 1024
    max_bytes: int = 64 * 2**20
    _entries: OrderedDict[tuple[str, str], StoredResponse] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def put(
        self,
        owner: str,
        response_id: str,
        response: msgspec.Struct,
        conversation: list[dict[str, Any]],
        task: asyncio.Task[None] | None = None,
    ) -> None:
        """Keep a response, in place of an earlier state of it."""
        entry = StoredResponse(
            msgspec.json.encode(response), msgspec.msgpack.encode(conversation), task
        )
        self._drop((owner, response_id))
        self._entries[owner, response_id] = entry
        self._bytes += entry.size
        while len(self._entries) > self.max_entries or self._bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._entries

    def get(self, owner: str, response_id: str, param: str | None = None) -> StoredResponse:
        """Raises UnknownResponse."""
        entry = self._entries.get((owner, response_id))
        if entry is None:
            raise UnknownResponse(f"There is no response {response_id[:200]!r}", param=param)
        self._entries.move_to_end((owner, response_id))
        return entry

    def conversation(self, owner: str, response_id: str) -> list[dict[str, Any]]:
        """The messages up to the response's end. Raises UnknownResponse."""
        entry = self.get(owner, response_id, "previous_response_id")
        messages: list[dict[str, Any]] = msgspec.msgpack.decode(entry.conversation)
        return messages

    def delete(self, owner: str, response_id: str) -> StoredResponse:
        """Forget a response. Raises UnknownResponse."""
        entry = self.get(owner, response_id)
        self._drop((owner, response_id))
        return entry

    def _drop(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
