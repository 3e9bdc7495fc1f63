"""Every bad input of the tables against a real server: no 5xx, no hang, nothing left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx

from api.bad_inputs import all_cases
from api.test_messages import BAD as MESSAGES
from api.test_responses import BAD as RESPONSES
from e2e.serving import RunningServer

JSON = {"content-type": "application/json"}
SECONDS = 10.0
AT_ONCE = 16
GOOD_EVERY = 4  # the same tables have one after each with a fake engine
FAKE_CONTEXT = 4000  # characters
ADMIN = ("/abort", "/reset_prefix_cache")
UNKNOWN = [("GET", "/v1/models/x"), ("GET", "/v1/responses/x"), ("POST", "/v1/responses/x/cancel")]
# So that what only the fake's small context refuses is answered soon.
SHORT = {
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}


def cases() -> Iterator[tuple[str, str, bytes]]:
    """(method, path, body) of every bad input but those that are long for the fake only."""
    for _, path, body, _, param in all_cases():
        if param != "max_tokens" or len(body) < FAKE_CONTEXT:
            yield "POST", path, shortened(path, body)
    for path, table in (("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES)):
        for given, param in table:
            if "tokens" in param and len(json.dumps(given)) > FAKE_CONTEXT:
                continue
            yield "POST", path, shortened(path, json.dumps(given).encode())
    for path in ADMIN:
        yield "POST", path, b'{"request_ids": 5}'
    for method, path in UNKNOWN:
        yield method, path, b""


def shortened(path: str, body: bytes) -> bytes:
    """The same body with few tokens to make, unless it says how many."""
    field = SHORT.get(path)
    try:
        parsed: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if field is None or not isinstance(parsed, dict) or {"max_tokens", field} & parsed.keys():
        return body
    return json.dumps({**parsed, field: 1}).encode()


async def send_all(url: str) -> tuple[list[str], int]:
    """What went wrong, and how many were refused. Several at a time, with good ones between."""
    waiting = cases()
    wrong, refused = [], 0

    async def work(http: httpx.AsyncClient) -> None:
        nonlocal refused
        for number, (method, path, body) in enumerate(waiting):
            response = await http.request(method, path, content=body)
            refused += 400 <= response.status_code < 500
            if response.status_code >= 500:
                wrong.append(f"{path} {body[:200]!r}: {response.text}")
            if number % GOOD_EVERY:
                continue
            good = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
            assert good.json()["usage"]["completion_tokens"] == 1, body[:200]

    async with httpx.AsyncClient(base_url=url, timeout=SECONDS, headers=JSON) as http:
        await asyncio.gather(*(work(http) for _ in range(AT_ONCE)))
    return wrong, refused


def test_no_bad_input_hurts_a_server(server: RunningServer) -> None:
    wrong, refused = asyncio.run(send_all(server.url))
    assert not wrong
    assert refused > 400
    server.wait(server.is_idle, 3)
