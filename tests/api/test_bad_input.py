"""Bad requests are refused in OpenAI's shape, name the field, and disturb nobody."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from api.bad_inputs import RAW, all_cases
from api.fakes import FakeClient, http_client, make_context, metric
from pagemill.api.context import ApiSettings, Limits

CASES = all_cases()
JSON = {"content-type": "application/json"}


def check_error(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, object] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert len(response.content) < 4000
    return error


def test_there_are_many_cases() -> None:
    assert len(CASES) > 300


def test_every_bad_request_is_refused_and_a_good_one_still_works() -> None:
    async def run() -> list[str]:
        client = FakeClient()
        context = make_context(client)
        wrong = []
        async with http_client(context) as http:
            for name, path, body, status, param in CASES:
                response = await http.post(path, content=body, headers=JSON)
                error = check_error(response, status)
                exact = param is None or error["param"] == param
                if not exact:
                    wrong.append(f"{name}: {error}")
                good = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
                assert good.json()["choices"][0]["text"] == "H", name
        assert not client.open_ids
        assert context.admission.num_open == 0
        finished = metric(context, "vllm:request_success_total", finished_reason="length")
        assert finished == len(CASES)
        return wrong

    assert asyncio.run(run()) == []


@pytest.mark.parametrize(("name", "body"), RAW)
def test_malformed_bodies_say_so(name: str, body: bytes) -> None:
    async def run() -> dict[str, object]:
        async with http_client(make_context()) as http:
            return check_error(await http.post("/v1/completions", content=body, headers=JSON), 400)

    message = str(asyncio.run(run())["message"])
    assert any(word in message for word in ("JSON", "UTF-8", "nested", "Number")), message


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_only_json_is_accepted(content_type: str | None) -> None:
    async def run() -> None:
        headers = {"content-type": content_type} if content_type else {}
        async with http_client(make_context()) as http:
            body = b'{"prompt": "x"}'
            response = await http.post("/v1/completions", content=body, headers=headers)
            check_error(response, 415)

    asyncio.run(run())


@pytest.mark.parametrize("declared", [True, False])
def test_body_over_the_limit(declared: bool) -> None:
    async def run() -> None:
        settings = ApiSettings(limits=Limits(max_body_bytes=1000))
        body = b'{"prompt": "' + b"x" * 2000 + b'"}'

        async def in_pieces():  # type: ignore[no-untyped-def]
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        async with http_client(make_context(settings=settings)) as http:
            content = body if declared else in_pieces()
            response = await http.post("/v1/completions", content=content, headers=JSON)
            assert "1000 bytes" in str(check_error(response, 413)["message"])

    asyncio.run(run())


def test_body_that_does_not_arrive() -> None:
    async def run() -> None:
        settings = ApiSettings(limits=Limits(body_timeout=0.05))

        async def slow():  # type: ignore[no-untyped-def]
            yield b'{"prompt":'
            await asyncio.sleep(0.5)
            yield b'"x"}'

        async with http_client(make_context(settings=settings)) as http:
            response = await http.post("/v1/completions", content=slow(), headers=JSON)
            check_error(response, 408)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/%ff%00", 404),
        ("BREW", "/v1/models", 405),
    ],
)
def test_unknown_routes(method: str, path: str, status: int) -> None:
    async def run() -> None:
        async with http_client(make_context()) as http:
            check_error(await http.request(method, path), status)

    asyncio.run(run())
