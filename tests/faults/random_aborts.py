"""Clients that abort, leave, and send half of things, at random; memory must stay flat.

    python tests/faults/random_aborts.py --seconds 600 --clients 12

Starts its own server with the demo model and prints its memory over time. Ends with code 1 when a
good request fails, something is left behind, or the memory of the second half has grown over that
of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from e2e.serving import RunningServer, serve

ADMIN = {"authorization": "Bearer admin"}
SAMPLE_SECONDS = 5.0
WARM_UP_SHARE = 0.2  # caches fill and pages of the KV cache are touched for the first time
MAX_GROWTH = 16 * 2**20  # bytes, from one half of the rest to the other


@dataclass
class Run:
    """One run against `server`; memory is (frontend, engine) in bytes."""

    server: RunningServer
    rng: random.Random
    end: float
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def body(self, length: int, **options: object) -> dict[str, object]:
        prompt = [self.rng.randrange(1000, 20000) for _ in range(self.rng.randrange(1, 120))]
        return {"prompt": prompt, "max_tokens": length, "ignore_eos": True, **options}


Action = Callable[[Run, httpx.AsyncClient], Awaitable[None]]


async def whole(run: Run, http: httpx.AsyncClient) -> None:
    """A good request, which must be answered in full."""
    length = run.rng.randrange(1, 24)
    response = await http.post("/v1/completions", json=run.body(length))
    if response.status_code != 200 or response.json()["usage"]["completion_tokens"] != length:
        run.errors.append(response.text[:300])


async def leave_stream(run: Run, http: httpx.AsyncClient) -> None:
    """A stream that is left after some events."""
    body = run.body(400, stream=True)
    async with http.stream("POST", "/v1/completions", json=body) as response:
        left = run.rng.randrange(0, 12)
        async for line in response.aiter_lines():
            left -= line.startswith("data:")
            if left < 0:
                return


async def give_up(run: Run, http: httpx.AsyncClient) -> None:
    """A whole answer that is not waited for."""
    wait = run.rng.random() * 0.5
    try:
        await asyncio.wait_for(http.post("/v1/completions", json=run.body(400)), wait)
    except TimeoutError:
        return


async def abort(run: Run, http: httpx.AsyncClient) -> None:
    """A stream that the administrator aborts; it must end in good order."""
    name = f"abort-{run.rng.getrandbits(64)}"
    body = run.body(400, stream=True)
    reasons = []
    async with http.stream(
        "POST", "/v1/completions", json=body, headers={"x-request-id": name}
    ) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {") and not reasons:
                await http.post("/abort", json={"request_ids": [name]}, headers=ADMIN)
            reasons.append(line)
    if not any('"finish_reason":"abort"' in line for line in reasons):
        run.errors.append(f"an aborted stream ended with {reasons[-3:]}")


async def half_a_request(run: Run, http: httpx.AsyncClient) -> None:
    """A connection that is reset before, in, or right after its request."""
    text = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    body = b'{"prompt": "x", "max_tokens": 300, "ignore_eos": true}'
    text += b"content-length: %d\r\n\r\n" % len(body) + body
    cut = run.rng.choice([0, 10, 60, len(text) - 5, len(text)])
    _, writer = await asyncio.open_connection("127.0.0.1", run.port)
    writer.write(text[:cut] if run.rng.random() < 0.8 else run.rng.randbytes(200))
    await writer.drain()
    await asyncio.sleep(run.rng.random() * 0.1)
    # A reset instead of an orderly end.
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()


ACTIONS: tuple[Action, ...] = (whole, whole, leave_stream, give_up, abort, half_a_request)


async def client(run: Run) -> None:
    """Do one thing after another until the end."""
    async with httpx.AsyncClient(base_url=run.server.url, timeout=120) as http:
        while time.monotonic() < run.end:
            action = run.rng.choice(ACTIONS)
            run.counts[action.__name__] += 1
            try:
                await action(run, http)
            except (httpx.HTTPError, OSError) as error:
                run.errors.append(f"{action.__name__}: {error!r}")


async def watch(run: Run) -> None:
    """Note the memory down."""
    frontend = psutil.Process(run.server.process.pid)
    (engine,) = frontend.children()
    while time.monotonic() < run.end:
        run.memory.append((frontend.memory_info().rss, engine.memory_info().rss))
        await asyncio.sleep(SAMPLE_SECONDS)


async def all_clients(run: Run, num_clients: int) -> None:
    await asyncio.gather(watch(run), *(client(run) for _ in range(num_clients)))


def growth(samples: list[int]) -> float:
    """By how many bytes the median of the second half is above that of the first, when warm."""
    warm = samples[int(len(samples) * WARM_UP_SHARE) :]
    half = len(warm) // 2
    return statistics.median(warm[half:]) - statistics.median(warm[:half]) if half else 0.0


def report(run: Run) -> int:
    """Print what happened; 1 when something is wrong."""
    say = sys.stdout.write
    say(f"{sum(run.counts.values())} actions: {dict(run.counts)}; {len(run.errors)} errors\n")
    for index, name in enumerate(("frontend", "engine")):
        samples = [pair[index] for pair in run.memory]
        shown = " ".join(f"{value / 2**20:.0f}" for value in samples[:: max(1, len(samples) // 20)])
        say(f"{name}: {shown} MiB; second half {growth(samples) / 2**20:+.1f} MiB\n")
        if growth(samples) > MAX_GROWTH:
            run.errors.append(f"the memory of the {name} has grown")
    sys.stdout.writelines(f"{line}\n" for line in run.errors[:10])
    return 1 if run.errors else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    flags = ("--kv-cache-bytes", str(2**27), "--log-level", "warning", "--admin-key", "admin")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), *flags) as server:
        server.wait_ready()
        run = Run(server, random.Random(args.seed), time.monotonic() + args.seconds)
        asyncio.run(all_clients(run, args.clients))
        try:
            server.wait(server.is_idle, 10)
        except AssertionError:
            run.errors.append("requests or blocks are left")
        if server.interrupt() != 0:
            run.errors.append(f"the server ended with {server.process.returncode}")
        if "Traceback" in server.output():
            run.errors.append(server.output()[-2000:])
    return report(run)


if __name__ == "__main__":
    sys.exit(main())
