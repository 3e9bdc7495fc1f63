"""Who may do what: keys, admin keys, Host and Origin, and what is logged of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import Any

import httpx
import pytest

from api.fakes import FakeClient, http_client, make_context, overloaded, pooling_client
from pagemill.api.app import ENDPOINTS
from pagemill.api.context import ApiSettings, Limits, allowed_hosts_for
from pagemill.api.middleware import host_name
from pagemill.config.pooling import PoolingConfig

KEYS = ApiSettings(keys=("sk-one", "sk-two"), admin_keys=("root",))
EMBEDDER = PoolingConfig(task="embed", method="mean", width=4)
COMPLETION = {"prompt": "secret prompt", "max_tokens": 2}


def call(
    method: str,
    path: str,
    settings: ApiSettings | None = None,
    headers: dict[str, str] | None = None,
    client: FakeClient | None = None,
    **options: Any,
) -> httpx.Response:
    async def run() -> httpx.Response:
        async with http_client(make_context(client, settings)) as http:
            return await http.request(method, path, headers=headers, **options)

    return asyncio.run(run())


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.path)
def test_every_endpoint_but_two_needs_a_key(endpoint: Any) -> None:
    path = endpoint.path.replace("{model_id:path}", "fake-model")
    response = call(endpoint.method, path, KEYS)
    if path in ("/health", "/ready"):
        assert response.status_code == 200
        return
    assert response.status_code == 401
    error = response.json()["error"]
    if path.startswith("/v1/messages"):
        assert error["type"] == "authentication_error"
    else:
        assert (error["type"], error["code"]) == ("AuthenticationError", 401)
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic sk-one",
        "sk-one",
        "Bearer sk-one x",
        "Bearer é",
    ],
)
def test_wrong_keys(authorization: str) -> None:
    headers = {"authorization": authorization.encode("latin-1")}
    assert call("GET", "/v1/models", KEYS, headers).status_code == 401  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["sk-one", "sk-two", "root"])
def test_every_key_opens(key: str) -> None:
    assert call("GET", "/v1/models", KEYS, bearer(key)).status_code == 200


@pytest.mark.parametrize("path", ["/load", "/server_info"])
def test_control_needs_the_admin_key(path: str) -> None:
    assert call("GET", path, KEYS, bearer("root")).status_code == 200
    assert call("GET", path, KEYS, bearer("sk-one")).status_code == 403
    assert call("GET", path, ApiSettings()).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("evil.example:8000/v1/models?x=", 400),
        ("", 400),
    ],
)
def test_host_header(host: str, status: int) -> None:
    assert call("GET", "/v1/models", headers={"host": host}).status_code == status


def test_hosts_to_trust_follow_the_address() -> None:
    assert "localhost" in allowed_hosts_for("127.0.0.1")
    assert "box.lan" in allowed_hosts_for("127.0.0.1", ("box.lan",))
    assert allowed_hosts_for("0.0.0.0") == ()
    assert allowed_hosts_for("0.0.0.0", ("box.lan",)) == ("box.lan",)
    assert host_name("[fe80::1]:80") == "fe80::1"


def test_cors_is_off_unless_asked_for() -> None:
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert call("OPTIONS", "/v1/completions", headers=preflight).status_code == 405
    settings = ApiSettings(allowed_origins=("https://app.example",))
    allowed = call("OPTIONS", "/v1/completions", settings, preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    other = {**preflight, "origin": "https://evil.example"}
    refused = call("OPTIONS", "/v1/completions", settings, other)
    assert "access-control-allow-origin" not in refused.headers


def test_request_id_is_echoed_and_stems_the_response_id() -> None:
    response = call("POST", "/v1/completions", headers={"x-request-id": "abc-1"}, json=COMPLETION)
    assert response.headers["x-request-id"] == "abc-1"
    assert response.json()["id"] == "cmpl-abc-1"


def test_request_id_in_the_body_goes_first() -> None:
    body = {**COMPLETION, "request_id": "own"}
    response = call("POST", "/v1/completions", headers={"x-request-id": "abc"}, json=body)
    assert response.headers["x-request-id"] == "own"
    assert response.json()["id"] == "cmpl-own"


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "ä"])
def test_unsafe_request_ids_are_replaced(given: str) -> None:
    headers = {"x-request-id": given.encode("latin-1")}
    echoed = call("GET", "/nothing", headers=headers).headers["x-request-id"]  # type: ignore[arg-type]
    assert echoed != given
    assert len(echoed) == 32


def test_one_request_id_used_twice_at_once_stays_two_requests() -> None:
    async def run() -> set[str]:
        context = make_context(FakeClient(delay=0.005))
        async with http_client(context, headers={"x-request-id": "same"}) as http:
            posts = [http.post("/v1/completions", json=COMPLETION) for _ in range(3)]
            return {response.json()["id"] for response in await asyncio.gather(*posts)}

    assert len(asyncio.run(run())) == 3


def test_limit_of_open_requests_per_key() -> None:
    async def run() -> list[int]:
        settings = ApiSettings(keys=("a", "b"), limits=Limits(max_requests_per_key=2))
        context = make_context(FakeClient(delay=0.02), settings)
        async with http_client(context) as http:
            posts = [
                http.post("/v1/completions", json=COMPLETION, headers=bearer(key)) for key in "aaab"
            ]
            statuses = [response.status_code for response in await asyncio.gather(*posts)]
            again = await http.post("/v1/completions", json=COMPLETION, headers=bearer("a"))
        assert again.status_code == 200
        return statuses

    assert sorted(asyncio.run(run())) == [200, 200, 200, 429]


@pytest.mark.parametrize("where", [0, 1])
def test_keys_may_be_given_as_digests(where: int) -> None:
    hashed = f"sha256:{hashlib.sha256(b'sk-one').hexdigest()}"
    settings = ApiSettings(keys=("sk-two", hashed)[:: 1 - 2 * where], admin_keys=(hashed,))
    assert call("GET", "/v1/models", settings, bearer("sk-one")).status_code == 200
    assert call("GET", "/load", settings, bearer("sk-one")).status_code == 200
    for wrong in (hashed, hashed.removeprefix("sha256:")):
        assert call("GET", "/v1/models", settings, bearer(wrong)).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-a": "x" * 900}, 200),
        ({"x-a": "x" * 1100}, 431),
        ({f"x-{i}": "" for i in range(8)}, 200),
        ({f"x-{i}": "" for i in range(20)}, 431),
    ],
)
def test_headers_are_bounded(headers: dict[str, str], status: int) -> None:
    settings = ApiSettings(limits=Limits(max_header_bytes=1100, max_headers=16))
    response = call("GET", "/v1/models", settings, headers)
    assert response.status_code == status
    if status != 200:
        assert response.json()["error"]["type"] == "RequestHeaderFieldsTooLarge"
        assert response.headers["x-request-id"]
    assert call("GET", "/v1/models?" + "a" * 1100, settings).status_code == 431


def post_all(settings: ApiSettings, *bodies: dict[str, Any]) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with http_client(make_context(settings=settings)) as http:
            return [await http.post("/v1/completions", json=body) for body in bodies]

    return asyncio.run(run())


def test_refusal_for_rate_says_when_to_come_back_and_what_is_left() -> None:
    settings = ApiSettings(limits=Limits(requests_per_minute=1))
    first, second = post_all(settings, COMPLETION, COMPLETION)
    assert (first.status_code, second.status_code) == (200, 429)
    assert int(second.headers["retry-after"]) > 50
    assert second.json()["error"]["type"] == "RateLimitError"
    for response in (first, second):
        assert response.headers["x-ratelimit-limit-requests"] == "1"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert response.headers["x-ratelimit-reset-requests"] in ("1m0s", "60s", "59s")
        assert "x-ratelimit-limit-tokens" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_prompt_and_output_are_counted(stream: bool) -> None:
    settings = ApiSettings(limits=Limits(tokens_per_minute=20))
    body = {**COMPLETION, "stream": stream}  # 13 + 2 tokens
    first, second, third = post_all(settings, body, body, body)
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert second.headers["x-ratelimit-remaining-tokens"] == "5"
    assert third.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(third.headers["retry-after"]) in (32, 33)  # 11 tokens at 20 a minute


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_a_refused_request_costs_no_tokens(path: str) -> None:
    """Else a client that comes back as it is told would use up its minute for nothing."""

    async def run() -> list[httpx.Response]:
        client = pooling_client(EMBEDDER) if path.endswith("embeddings") else FakeClient()
        client.raises = overloaded()
        settings = ApiSettings(limits=Limits(tokens_per_minute=20))
        body = {"input": "Once upon a time"} if client.info.pooling else COMPLETION
        async with http_client(make_context(client, settings)) as http:
            refused = [await http.post(path, json=body) for _ in range(3)]
            client.raises = None
            return [*refused, await http.post(path, json=body)]

    assert [response.status_code for response in asyncio.run(run())] == [503, 503, 503, 200]


def test_background_responses_are_counted_too() -> None:
    async def run() -> int:
        context = make_context(settings=ApiSettings(limits=Limits(tokens_per_minute=20)))
        async with http_client(context) as http:
            body = {"input": "x", "background": True}
            made = (await http.post("/v1/responses", json=body)).json()
            while made["status"] == "in_progress":
                await asyncio.sleep(0.001)
                made = (await http.get(f"/v1/responses/{made['id']}")).json()
            return (await http.post("/v1/completions", json=COMPLETION)).status_code

    assert asyncio.run(run()) == 429


def test_no_rate_headers_without_limits() -> None:
    response = call("POST", "/v1/completions", json=COMPLETION)
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


def test_draining_refuses_new_requests_and_waits_for_old_ones() -> None:
    async def run() -> None:
        context = make_context(FakeClient(delay=0.02))
        async with http_client(context) as http:
            running = asyncio.create_task(http.post("/v1/completions", json=COMPLETION))
            await asyncio.sleep(0.01)
            context.admission.start_drain()
            refused = await http.post("/v1/completions", json=COMPLETION)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert (await http.get("/ready")).json() == {"status": "draining"}
            assert (await http.get("/health")).status_code == 200
            assert not running.done()
            await context.admission.wait_idle()
            assert (await running).status_code == 200

    asyncio.run(run())


def test_overload_says_when_to_come_back() -> None:
    response = call(
        "POST", "/v1/completions", client=FakeClient(raises=overloaded()), json=COMPLETION
    )
    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"
    assert response.json()["error"]["type"] == "ServiceUnavailableError"


@pytest.mark.parametrize("as_json", [False, True])
def test_access_line_has_counts_but_no_text(as_json: bool, caplog: Any) -> None:
    settings = ApiSettings(keys=("sk-one",), json_access_log=as_json)
    with caplog.at_level(logging.INFO, "pagemill.access"):
        headers = {**bearer("sk-one"), "x-request-id": "r1"}
        call("POST", "/v1/completions", settings, headers, json=COMPLETION)
    (line,) = [record.getMessage() for record in caplog.records if "r1" in record.getMessage()]
    assert "secret" not in line
    assert "sk-one" not in line
    if as_json:
        fields = json.loads(line)
        assert (fields["status"], fields["prompt_tokens"], fields["completion_tokens"]) == (
            200,
            13,
            2,
        )
    else:
        assert "POST /v1/completions 200" in line
        assert "prompt=13 cached=2 completion=2" in line


def test_access_line_cannot_be_forged(caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "pagemill.access"):
        call("GET", "/a%0aGET%20/fake%20200")
    (line,) = [r.getMessage() for r in caplog.records if r.name == "pagemill.access"]
    assert "\n" not in line
