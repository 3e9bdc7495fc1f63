"""`pagemill chat` against a small HTTP server that speaks the API's stream."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pagemill.cli.chat import ChatError, Conversation, Server, chat
from pagemill.cli.parser import parse


class FakeApi(http.server.ThreadingHTTPServer):
    """Answers `events` to every chat request and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.events: list[dict[str, Any]] = []
        self.status = 200
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeApi

    def do_GET(self) -> None:
        self._send(b'{"data": [{"id": "tiny"}]}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        self.server.keys.append(self.headers["Authorization"])
        if self.server.status != 200:
            self._send(b'{"error": {"message": "no such model"}}', self.server.status)
            return
        lines = [f"data: {json.dumps(event)}\n\n" for event in self.server.events]
        self._send("".join([*lines, ": comment\n\n", "data: [DONE]\n\n"]).encode())

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def piece(text: str | None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_answer_is_printed_and_remembered(api: FakeApi) -> None:
    api.events = [piece(None), piece("Hé"), piece("llo"), {"choices": []}]
    conversation = Conversation(Server(api.url, "key"), "tiny", "Be brief.", {"max_tokens": 5})
    conversation.reset()
    out = io.StringIO()
    conversation.ask("Hi", out)
    conversation.ask("Again", out)
    assert out.getvalue() == "Héllo\nHéllo\n"
    assert api.bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Héllo"},
        {"role": "user", "content": "Again"},
    ]
    assert api.bodies[0]["stream"] is True
    assert api.bodies[0]["max_tokens"] == 5
    assert api.keys[0] == "Bearer key"
    conversation.reset()
    assert [m["role"] for m in conversation.messages] == ["system"]


def test_refused_question_is_forgotten(api: FakeApi) -> None:
    api.status = 404
    conversation = Conversation(Server(api.url + "/v1/"), "tiny")
    with pytest.raises(ChatError, match=r"no such model \(HTTP 404\)"):
        conversation.ask("Hi", io.StringIO())
    assert conversation.messages == []


def test_error_in_the_stream_is_raised(api: FakeApi) -> None:
    api.events = [piece("a"), {"error": {"message": "the engine has stopped"}}]
    with pytest.raises(ChatError, match="the engine has stopped"):
        Conversation(Server(api.url), "tiny").ask("Hi", io.StringIO())


def test_ctrl_c_keeps_what_came(api: FakeApi) -> None:
    class Interrupting(io.StringIO):
        def flush(self) -> None:
            if self.getvalue() == "one":
                raise KeyboardInterrupt

    api.events = [piece("one"), piece("two")]
    conversation = Conversation(Server(api.url), "tiny")
    conversation.ask("Hi", Interrupting())
    assert conversation.messages[-1] == {"role": "assistant", "content": "one"}


def test_command_reads_prompts_until_exit(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api.events = [piece("yes")]
    typed = iter(["Hi", "", "/reset", "Bye", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert chat(parse(["chat", "--url", api.url])) == 0
    assert [len(body["messages"]) for body in api.bodies] == [1, 1]
    assert "Talking to tiny" in capsys.readouterr().out


def test_quick_asks_once(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.events = [piece("42")]
    assert chat(parse(["chat", "--url", api.url, "-q", "Hi", "--temperature", "0"])) == 0
    assert capsys.readouterr().out == "42\n"
    assert api.bodies[0]["temperature"] == 0


def test_no_server_is_one_line() -> None:
    with pytest.raises(ChatError, match="no server answers at"):
        Server("http://127.0.0.1:1").models()
