"""Reading batch files: what is a request, what is not, and why."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pytest

from pagemill.api.batch.lines import BadLine, BatchLine, Line, LineReader, Scan, scan

URL = "/v1/completions"
READER = LineReader((URL, "/v1/chat/completions"), max_line_bytes=300)


def line(custom_id: str = "a", **changes: Any) -> bytes:
    fields = {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"prompt": "x"}}
    return json.dumps(fields | changes).encode() + b"\n"


def read(data: bytes) -> list[Line]:
    return list(READER.read(io.BufferedReader(io.BytesIO(data))))


def scanned(data: bytes) -> Scan:
    return scan(io.BufferedReader(io.BytesIO(data)), READER)


def test_requests_keep_their_body_and_line_number() -> None:
    data = b"\xef\xbb\xbf" + line("a") + b"\n  \n" + line("b").rstrip()
    body = b'{"prompt": "x"}'
    assert read(data) == [BatchLine(1, "a", URL, body), BatchLine(4, "b", URL, body)]


@pytest.mark.parametrize(
    ("text", "custom_id", "message"),
    [
        (b"{", None, "not valid JSON"),
        (b"[]", None, "Expected object"),
        (b'{"custom_id": "a\xff"}', None, "UTF-8"),
        (b'{"body": ' + b"[" * 250, None, "not valid JSON"),
        (line("a", method="GET"), "a", "method"),
        (line("a", url="/v1/models"), "a", "/v1/completions"),
        (line("a", url=URL, extra=1), "a", "extra: unknown field"),
        (line("", url=URL), None, "custom_id"),
        (line(7, url=URL), None, "custom_id"),  # type: ignore[arg-type]
        (b'{"custom_id": "a", "method": "POST", "url": "' + URL.encode() + b'"}', "a", "body"),
    ],
)
def test_malformed_line_says_what_is_wrong(
    text: bytes, custom_id: str | None, message: str
) -> None:
    (bad,) = read(text)
    assert isinstance(bad, BadLine)
    assert bad.custom_id == custom_id
    assert message in bad.message


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_line_that_is_too_long_is_skipped_without_reading_it_whole(end: bytes) -> None:
    long = line("long", body={"prompt": "x" * 3_000_000}).rstrip()
    lines = read(line("a") + long + end + (line("b") if end else b""))
    assert [item.number for item in lines] == ([1, 2, 3] if end else [1, 2])
    assert isinstance(lines[1], BadLine)
    assert "300 bytes" in lines[1].message


def test_longest_line_is_still_a_request() -> None:
    exact = line("a").rstrip()
    padded = exact + b" " * (300 - len(exact)) + b"\n"
    assert isinstance(read(padded + line("b"))[0], BatchLine)


def test_scan_counts_and_names_duplicates() -> None:
    data = line("a") + line("b") + b"{\n" + line("a") + line("a", method="GET")
    found = scanned(data)
    assert found.digest == hashlib.sha256(data).digest()
    assert (found.num_lines, found.num_bad) == (5, 2)
    assert [bad.number for bad in found.bad] == [3, 5]
    assert found.duplicates == [("a", 1, 4), ("a", 1, 5)]
