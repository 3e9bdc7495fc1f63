"""The small endpoints: models, health, tokenize, control, metrics, the document."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import jsonschema
import pytest

from api.fakes import FakeClient, http_client, make_context, metric
from pagemill.api.app import ENDPOINTS
from pagemill.api.context import ApiSettings, ServerContext
from pagemill.engine.messages import EngineStats, EngineStatus
from pagemill.errors import EngineDeadError

ADMIN = ApiSettings(admin_keys=("root",))
ROOT = {"authorization": "Bearer root"}


def call(
    method: str, path: str, context: ServerContext | None = None, **options: Any
) -> httpx.Response:
    async def run() -> httpx.Response:
        async with http_client(context or make_context()) as http:
            return await http.request(method, path, **options)

    return asyncio.run(run())


def test_models() -> None:
    answer = call("GET", "/v1/models").json()
    assert [card["id"] for card in answer["data"]] == ["fake-model", "alias"]
    assert answer["data"][0]["max_model_len"] == 512
    assert call("GET", "/v1/models/alias").json()["id"] == "alias"


def test_model_names_with_slashes() -> None:
    context = make_context()
    context.served_model_names = ("org/model",)
    assert call("GET", "/v1/models/org/model", context).json()["id"] == "org/model"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (EngineStatus("ready"), (200, "ok")),
        (EngineStatus("loading", phase="weights"), (503, "loading")),
        (EngineStatus("failed", detail="out of memory at 0xdead"), (503, "failed")),
    ],
)
def test_health_and_ready(state: EngineStatus, expected: tuple[int, str]) -> None:
    for path in ("/health", "/ready"):
        response = call("GET", path, make_context(FakeClient(status=state)))
        assert (response.status_code, response.json()["status"]) == expected
        assert "0xdead" not in response.text


def test_health_before_the_renderer_is_there() -> None:
    context = make_context(renderer=None)
    assert call("GET", "/health", context).json()["status"] == "loading"
    assert call("GET", "/v1/models", context).json()["data"][0]["max_model_len"] is None
    response = call("POST", "/v1/completions", context, json={"prompt": "x"})
    assert response.status_code == 503
    assert "retry-after" in response.headers


def test_health_that_generates() -> None:
    client = FakeClient()
    assert call("GET", "/health?generate=1", make_context(client)).status_code == 200
    assert client.calls[0][1].max_tokens == 1
    for broken in (FakeClient(fail_after=0), FakeClient(raises=EngineDeadError("gone"))):
        assert call("GET", "/health?generate=1", make_context(broken)).status_code == 503
        assert call("GET", "/health", make_context(broken)).status_code == 200


def test_dead_engine() -> None:
    context = make_context(FakeClient(status=EngineStatus("failed", detail="SIGKILL at 0xdead")))
    response = call("POST", "/v1/completions", context, json={"prompt": "x"})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The engine has stopped"


def test_unexpected_exception_is_logged_not_told(caplog: Any) -> None:
    context = make_context(FakeClient(raises=RuntimeError("secret detail")))
    headers = {"x-request-id": "r7"}
    response = call("POST", "/v1/completions", context, json={"prompt": "x"}, headers=headers)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "Internal server error"
    assert response.headers["x-request-id"] == "r7"
    assert "r7" in caplog.text
    assert "secret detail" in caplog.text
    assert context.admission.num_open == 0


def test_failed_generation_is_a_500_without_internals() -> None:
    context = make_context(FakeClient(fail_after=1))
    response = call("POST", "/v1/completions", context, json={"prompt": "x"})
    assert response.status_code == 500
    assert "0xdeadbeef" not in response.text
    assert metric(context, "vllm:request_success_total", finished_reason="error") == 1


def test_tokenize_text_and_messages() -> None:
    answer = call("POST", "/tokenize", json={"prompt": "hi", "return_token_strs": True}).json()
    assert answer == {
        "count": 2,
        "max_model_len": 512,
        "tokens": [104, 105],
        "token_strs": ["h", "i"],
    }
    chat = call("POST", "/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    assert chat["count"] == len("<user>a")


def test_detokenize() -> None:
    assert call("POST", "/detokenize", json={"tokens": [104, 105]}).json() == {"prompt": "hi"}
    assert call("POST", "/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_control_endpoints() -> None:
    client = FakeClient(stats=EngineStats(num_running=3, num_waiting=4))
    context = make_context(client, ADMIN)
    reset = call("POST", "/reset_prefix_cache", context, headers=ROOT)
    assert reset.json() == {"success": True}
    assert client.controls == [("reset_prefix_cache", ())]
    load = call("GET", "/load", context, headers=ROOT).json()
    assert (load["num_running"], load["num_waiting"], load["server_load"]) == (3, 4, 0)
    info = call("GET", "/server_info", context, headers=ROOT).json()
    assert info["engine"]["block_size"] == 16
    assert "root" not in str(info["limits"])


@pytest.mark.parametrize("wanted", ["r1", "cmpl-r1"])
def test_abort_by_request_id_or_response_id(wanted: str) -> None:
    async def run() -> None:
        context = make_context(FakeClient(delay=0.01), ADMIN)
        async with http_client(context) as http:
            body = {"prompt": ["a", "b"], "max_tokens": 30}
            headers = {"x-request-id": "r1"}
            keyed = {**headers, **ROOT}
            running = asyncio.create_task(http.post("/v1/completions", json=body, headers=keyed))
            await asyncio.sleep(0.03)
            aborted = await http.post("/abort", json={"request_ids": [wanted]}, headers=ROOT)
            assert aborted.json() == {"aborted": 2}
            choices = (await running).json()["choices"]
            assert [choice["finish_reason"] for choice in choices] == ["abort", "abort"]
            nothing = await http.post("/abort", json={"request_ids": [wanted]}, headers=ROOT)
            assert nothing.json() == {"aborted": 0}

    asyncio.run(run())


def test_docs_page_loads_nothing_from_elsewhere() -> None:
    response = call("GET", "/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "://" not in response.text


def test_document_lists_every_endpoint_and_resolves() -> None:
    document = call("GET", "/openapi.json").json()
    operations = {(m.upper(), p) for p, methods in document["paths"].items() for m in methods}
    assert operations == {(e.method, e.path.replace(":path}", "}")) for e in ENDPOINTS}
    schemas = document["components"]["schemas"]
    assert set(find_references(document)) <= {f"#/components/schemas/{name}" for name in schemas}
    assert document["paths"]["/health"]["get"].get("security") is None
    assert document["paths"]["/metrics"]["get"]["security"]


def find_references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for child in node.values() for ref in find_references(child)]
    return (
        [ref for child in node for ref in find_references(child)] if isinstance(node, list) else []
    )


@pytest.mark.parametrize(
    ("path", "body", "schema"),
    [
        ("/v1/completions", {"prompt": "x", "logprobs": 1, "echo": True}, "Completion"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "logprobs": True},
            "ChatCompletion",
        ),
        ("/v1/completions", {"prompt": 5}, "ErrorResponse"),
    ],
)
def test_answers_match_the_document(path: str, body: dict[str, Any], schema: str) -> None:
    document = call("GET", "/openapi.json").json()
    answer = call("POST", path, json=body).json()
    root = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    jsonschema.validate(answer, root)
