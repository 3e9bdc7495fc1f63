"""The lines of OpenAI's batch files: requests in, answers out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Annotated, Literal, TypeAlias

import msgspec

from pagemill.api.body import decode
from pagemill.errors import InvalidParams

MAX_CUSTOM_ID = 512
MAX_REPORTED = 20  # duplicates and bad lines that are named; the others are counted
_BOM = b"\xef\xbb\xbf"
_SKIPPED_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request; `number` is its line in the file, from 1."""

    number: int
    custom_id: str
    url: str
    body: bytes


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no request, and why."""

    number: int
    custom_id: str | None
    message: str
    param: str | None = None


Line: TypeAlias = BatchLine | BadLine


class LineResponse(msgspec.Struct):
    """What an endpoint answered; `body` is an error body unless the status is 200."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct):
    """Why a request has no response at all."""

    code: str
    message: str


class BatchOutput(msgspec.Struct):
    """One line of an output file: either `response` or `error` is set."""

    id: str
    custom_id: str | None
    response: LineResponse | None = None
    error: LineError | None = None

    def encode(self) -> bytes:
        """The line, with its end."""
        return msgspec.json.encode(self) + b"\n"


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class _Named(msgspec.Struct):
    custom_id: str | None = None


_decoder = msgspec.json.Decoder(_Request)
_name_decoder = msgspec.json.Decoder(_Named)


@dataclass(frozen=True)
class LineReader:
    """Reads requests for `urls` from a file, one line at a time."""

    urls: Collection[str]
    max_line_bytes: int

    def read(self, file: BufferedReader) -> Iterator[Line]:
        """The lines that are not blank, from the file's beginning."""
        for number, text in self._texts(file):
            yield self.parse(number, text)

    def parse(self, number: int, text: bytes | None) -> Line:
        """One line; None stands for one that is too long."""
        if text is None:
            return BadLine(number, None, f"the line is longer than {self.max_line_bytes} bytes")
        try:
            request = decode(text, _decoder)
        except InvalidParams as error:
            return BadLine(number, _custom_id(text), error.message, error.param)
        if request.url not in self.urls:
            known = ", ".join(self.urls)
            message = f"url: batches here can call {known}; not {request.url[:200]!r}"
            return BadLine(number, request.custom_id, message, "url")
        return BatchLine(number, request.custom_id, request.url, bytes(request.body))

    def _texts(self, file: BufferedReader) -> Iterator[tuple[int, bytes | None]]:
        file.seek(0)
        number = 0
        while text := file.readline(self.max_line_bytes + 2):
            number += 1
            if number == 1:
                text = text.removeprefix(_BOM)
            if not text.endswith(b"\n") and len(text) > self.max_line_bytes:
                while (rest := file.readline(_SKIPPED_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
            elif text.strip():
                yield number, text


def _custom_id(text: bytes) -> str | None:
    """The id of a line that is wrong elsewhere, so that its error can be assigned."""
    try:
        custom_id = _name_decoder.decode(text).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return custom_id[:MAX_CUSTOM_ID] if custom_id else None


@dataclass
class Scan:
    """What a first pass over a file has found. `digest` is of the file's bytes."""

    digest: bytes = b""
    num_lines: int = 0
    num_bad: int = 0
    bad: list[BadLine] = field(default_factory=list)
    duplicates: list[tuple[str, int, int]] = field(default_factory=list)  # id, first line, again


def scan(file: BufferedReader, reader: LineReader) -> Scan:
    """Read all lines once; of the bad ones and the duplicates, the first few are kept."""
    file.seek(0)
    found = Scan(hashlib.file_digest(file, "sha256").digest())
    first_lines: dict[bytes, int] = {}  # by a digest of custom_id: ids may be long, and many
    for line in reader.read(file):
        found.num_lines += 1
        if isinstance(line, BadLine):
            found.num_bad += 1
            if len(found.bad) < MAX_REPORTED:
                found.bad.append(line)
        if line.custom_id is None:
            continue
        name = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
        first = first_lines.setdefault(name, line.number)
        if first != line.number and len(found.duplicates) < MAX_REPORTED:
            found.duplicates.append((line.custom_id, first, line.number))
    return found
