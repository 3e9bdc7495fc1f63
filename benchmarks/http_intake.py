"""What a request costs the frontend: processor time from its first byte to the end of its stream.

    python benchmarks/http_intake.py [--profile profiles] [--requests 1000]

A real server over the engine without a model (`fake_engine.py`). Every request streams two tokens,
so what counts is the intake, the begin of the stream and its end. First one caller after the other,
with steps that take no time; then 32 that send at once, with steps of 5 ms, so that their tokens
come together as they would from a model. The clock says when the last of them had its first byte.
"""

from __future__ import annotations

import argparse
import json
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np

from http_path import serve_fake, server

END = b"0\r\n\r\n"  # of a chunked body
CALLERS = 32
WARM = 64
WORDS = (
    "the of and to in is that for it was on are with they be at one have this from by had not "
    "but what all were when we there can an your which their said if do will each about how up "
    "out them then she many some so these would other into has more her two like him see time "
    "could no make than first been its who now people my made over did down only way find use "
    "may water long little very after words called just where most know government committee "
    "measurement statistical temperature consequently understanding philosophical"
)
_rng = np.random.default_rng(0)


@dataclass(frozen=True)
class Kind:
    """A form of request; `body` makes a new one each time."""

    name: str
    path: str
    body: Callable[[], dict[str, object]]


def _text(num_characters: int) -> str:
    """English words in any order, about five characters a token; never the same twice."""
    return " ".join(_rng.choice(WORDS.split(), num_characters // 4).tolist())[:num_characters]


def _history() -> dict[str, object]:
    roles = ("system", "user", "assistant", "user")
    return {"messages": [{"role": role, "content": _text(200)} for role in roles]}


KINDS = (
    Kind("text", "/v1/completions", lambda: {"prompt": _text(2500)}),
    Kind("ids", "/v1/completions", lambda: {"prompt": _rng.integers(1000, 40000, 512).tolist()}),
    Kind("chat", "/v1/chat/completions", _history),
)


def request_of(kind: Kind) -> bytes:
    """A whole request, as it is written to the socket."""
    options = {"max_tokens": 2, "temperature": 0.0, "stream": True, "ignore_eos": True}
    body = json.dumps(kind.body() | options | {"stream_options": {"include_usage": True}}).encode()
    head = (
        f"POST {kind.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nUser-Agent: intake\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Caller:
    """One connection that asks and reads to the end of the stream."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answer = b""

    def send(self, request: bytes) -> None:
        self._answer = b""
        self.socket.sendall(request)

    def read(self) -> bool:
        """Read what is there, waiting for something; whether it was the end."""
        self._answer += self.socket.recv(65536)
        if not self._answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(self._answer.decode())
        return self._answer.endswith(END)


def one_by_one(port: int, requests: list[bytes]) -> list[float]:
    """Seconds to each request's first byte."""
    caller, seconds = Caller(port), []
    for request in requests:
        begin = time.perf_counter()
        caller.send(request)
        ended = caller.read()
        seconds.append(time.perf_counter() - begin)
        while not ended:
            ended = caller.read()
    caller.socket.close()
    return seconds


def at_once(port: int, requests: list[bytes]) -> list[float]:
    """Seconds to the last one's first byte, for each wave of `CALLERS`."""
    callers = [Caller(port) for _ in range(CALLERS)]
    selector = selectors.DefaultSelector()
    for caller in callers:
        selector.register(caller.socket, selectors.EVENT_READ, caller)
    seconds = []
    for first in range(0, len(requests), CALLERS):
        begin = time.perf_counter()
        for caller, request in zip(callers, requests[first : first + CALLERS], strict=False):
            caller.send(request)
        seconds.append(_read_all(selector, len(requests[first : first + CALLERS])) - begin)
    for caller in callers:
        caller.socket.close()
    return seconds


def _read_all(selector: selectors.BaseSelector, num_open: int) -> float:
    """When the last of them had its first byte."""
    begun: set[int] = set()
    last = 0.0
    while num_open:
        for key, _ in selector.select():
            if key.fd not in begun:
                begun.add(key.fd)
                last = time.perf_counter()
            num_open -= key.data.read()
    return last


@dataclass(frozen=True)
class Way:
    """How requests are sent, and how long the engine's steps are meanwhile."""

    run: Callable[[int, list[bytes]], list[float]]
    step_ms: float


WAYS = (Way(one_by_one, 0.0), Way(at_once, 5.0))


def measure(kind: Kind, way: Way, args: argparse.Namespace) -> None:
    """Run a kind on a server of its own and print what it cost."""
    requests = [request_of(kind) for _ in range(WARM + args.requests)]
    name = f"{kind.name}-{way.run.__name__}"
    profile = args.profile / f"{name}.txt" if args.profile else None
    options = ["--model", args.model] if args.model else []
    options += ["--profile", str(profile)] if profile else []
    with server(__file__, way.step_ms, *options) as (port, process):
        way.run(port, requests[:WARM])
        before = process.cpu_times()
        seconds = way.run(port, requests[WARM:])
        after = process.cpu_times()
    user, system = after.user - before.user, after.system - before.system
    each = 1e6 / args.requests
    print(
        f"{name:15} user {user * each:5.0f} us, system {system * each:5.0f} us, both "
        f"{(user + system) * each:5.0f} us a request; first byte after "
        f"{1000 * float(np.median(seconds)):.2f} ms (median), {1000 * min(seconds):.2f} ms (least)",
        flush=True,
    )


class Sampler:
    """Which functions run, looked up at every tick of a timer of processor time.

    Unlike a profiler that is told of every call, it makes nothing look dearer than it is.
    """

    def __init__(self) -> None:
        self._num_samples = 0
        self._seen: Counter[str] = Counter()

    def run(self, work: Callable[[], None], path: Path) -> None:
        """Run `work`; write each function's share, callees included, to `path`."""
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
        try:
            work()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            shares = (f"{n / self._num_samples:6.1%} {name}" for name, n in self._common())
            path.write_text("\n".join(shares) + "\n")

    def _common(self) -> list[tuple[str, int]]:
        return self._seen.most_common(250)

    def _look(self, number: int, frame: FrameType | None) -> None:
        names = set()
        while frame is not None:
            names.add(f"{frame.f_globals.get('__name__')} {frame.f_code.co_qualname}")
            frame = frame.f_back
        if any(name.endswith("Runner.run") for name in names):  # not while it starts
            self._num_samples += 1
            self._seen.update(names)


def serve(args: argparse.Namespace) -> None:
    """The server process, sampled where `--profile` names a file."""
    if args.profile is None:
        serve_fake(args)
    else:
        Sampler().run(partial(serve_fake, args), args.profile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--step-ms", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--model", help="for its tokenizer; default: the demo model")
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--kinds", nargs="*", default=[kind.name for kind in KINDS])
    parser.add_argument("--profile", type=Path, help="a folder for samples of the frontend")
    args = parser.parse_args()
    args.workers = 1
    if args.serve:
        serve(args)
        return
    for kind in KINDS:
        if kind.name in args.kinds:
            for way in WAYS:
                measure(kind, way, args)


if __name__ == "__main__":
    main()
