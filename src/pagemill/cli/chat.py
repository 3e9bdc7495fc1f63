"""A chat in the terminal against a running server, over the same API that clients use."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO
from urllib.parse import urlsplit

from pagemill.errors import PageMillError

CONNECT_TIMEOUT = 10.0
_DATA = b"data: "
_DONE = b"[DONE]"


class ChatError(PageMillError):
    """The server cannot be reached, or it refused the request."""


@dataclass
class Server:
    """The HTTP side of a chat: `url` with or without /v1, `key` for the Authorization header."""

    url: str
    key: str | None = None

    def models(self) -> list[str]:
        """The names that the server answers to."""
        with self._request("GET", "/models") as response:
            return [model["id"] for model in json.load(response)["data"]]

    def stream(self, body: dict[str, Any]) -> Iterator[str]:
        """Pieces of the answer as they come; closing the iterator drops the connection."""
        with self._request("POST", "/chat/completions", {**body, "stream": True}) as response:
            for line in response:
                payload = line.strip().removeprefix(_DATA)
                if payload == _DONE:
                    return
                if line.startswith(_DATA):
                    yield _piece(json.loads(payload))

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> http.client.HTTPResponse:
        parts = urlsplit(self.url if "//" in self.url else f"http://{self.url}")
        https = parts.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        root = parts.path.rstrip("/")
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT)
        try:
            connection.connect()
            connection.sock.settimeout(None)  # an answer may take its time
            connection.request(
                method,
                f"{root if root.endswith('/v1') else root + '/v1'}{path}",
                json.dumps(body) if body is not None else None,
                headers,
            )
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise ChatError(f"no server answers at {self.url}: {error}") from None
        if response.status != 200:
            raise ChatError(_reason(response))
        return response


@dataclass
class Conversation:
    """What was said so far, and how to ask for more."""

    server: Server
    model: str
    system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str, out: TextIO) -> None:
        """Print the answer as it comes and remember both sides; Ctrl-C keeps what came.

        When the server refuses, nothing is remembered. Raises ChatError.
        """
        self.messages.append({"role": "user", "content": text})
        answer = ""
        pieces = self.server.stream({"model": self.model, "messages": self.messages} | self.options)
        try:
            for piece in pieces:
                answer += piece
                print(piece, end="", file=out, flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="", file=out)
        except (ChatError, OSError, http.client.HTTPException) as error:
            self.messages.pop()
            raise ChatError(str(error)) from None
        finally:
            pieces.close()  # type: ignore[attr-defined]
        print(file=out)
        self.messages.append({"role": "assistant", "content": answer})


def chat(parsed: argparse.Namespace) -> int:
    """The `chat` command. Returns the exit code; raises ChatError when there is no server."""
    server = Server(parsed.url, parsed.api_key or os.environ.get("PAGEMILL_API_KEY"))
    model = parsed.model or server.models()[0]
    asked = {"temperature": parsed.temperature, "max_tokens": parsed.max_tokens}
    options = {name: value for name, value in asked.items() if value is not None}
    conversation = Conversation(server, model, parsed.system, options)
    conversation.reset()
    if parsed.quick is not None:
        conversation.ask(parsed.quick, sys.stdout)
        return 0
    print(f"Talking to {model}. Ctrl-C stops an answer; /reset forgets; /exit ends.")
    with suppress(ImportError):
        import readline  # noqa: F401  # history and line editing for input()
    with suppress(EOFError, KeyboardInterrupt):
        _loop(conversation)
    return 0


def _loop(conversation: Conversation) -> None:
    """Read and answer until /exit or the end of the input."""
    while True:
        text = input("\n> ").strip()
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            conversation.reset()
            print("(forgotten)")
        elif text:
            try:
                conversation.ask(text, sys.stdout)
            except ChatError as error:
                print(f"error: {error}", file=sys.stderr)


def _piece(event: dict[str, Any]) -> str:
    """The text in one event of the stream. Raises ChatError for an error event."""
    if "error" in event:
        raise ChatError(event["error"]["message"])
    choices = event["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


def _reason(response: http.client.HTTPResponse) -> str:
    """The server's own words for a refusal."""
    text = response.read().decode(errors="replace")
    try:
        return f"{json.loads(text)['error']['message']} (HTTP {response.status})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status} {response.reason}"
