"""Keep a server busy with streaming clients and report errors, leaks and memory.

    python tests/e2e/soak.py --seconds 120 --clients 64

Starts its own server with the demo model. Ends with code 1 when anything failed or leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import openai
import psutil
from serving import RunningServer, serve

LEAVE_SHARE = 0.1  # of the requests are left in the middle


@dataclass
class Tally:
    """What happened; memory is in bytes, of the server and its engine together."""

    requests: int = 0
    left: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


async def ask(client: openai.AsyncOpenAI, rng: random.Random, tally: Tally) -> None:
    """One stream of random lengths, sometimes left early."""
    prompt = [rng.randrange(1000, 20000) for _ in range(rng.randrange(1, 400))]
    length = rng.randrange(1, 100)
    leave_after = rng.randrange(length) if rng.random() < LEAVE_SHARE else None
    stream = await client.completions.create(
        model=None,  # type: ignore[arg-type]
        prompt=prompt,
        max_tokens=length,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    count = 0
    async for chunk in stream:
        if chunk.choices:
            count += len(chunk.choices[0].model_extra["token_ids"])
        if leave_after is not None and count > leave_after:
            await stream.close()
            tally.left += 1
            break
    else:
        if count != length:
            tally.errors.append(f"{count} tokens instead of {length}")
    tally.requests += 1
    tally.tokens += count


async def keep_busy(server: RunningServer, seconds: float, num_clients: int, tally: Tally) -> None:
    end = time.monotonic() + seconds
    client = server.async_client()

    async def worker(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            try:
                await ask(client, rng, tally)
            except openai.OpenAIError as error:
                tally.errors.append(repr(error))

    async def watch() -> None:
        while time.monotonic() < end:
            tally.memory.append(await asyncio.to_thread(memory, server))
            await asyncio.sleep(5)

    await asyncio.gather(watch(), *(worker(i) for i in range(num_clients)))
    await client.close()


def memory(server: RunningServer) -> int:
    process = psutil.Process(server.process.pid)
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    args = parser.parse_args()
    tally = Tally()
    flags = ("--dtype", "float32", "--kv-cache-bytes", str(2**28), "--log-level", "warning")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), *flags) as server:
        server.wait_ready()
        asyncio.run(keep_busy(server, args.seconds, args.clients, tally))
        try:
            server.wait(server.is_idle, 3)
        except AssertionError:
            tally.errors.append("requests or blocks are left")
        code = server.interrupt()
    shown = " ".join(f"{bytes_ / 2**20:.0f}" for bytes_ in tally.memory)
    sys.stdout.write(
        f"{tally.requests} requests, {tally.left} of them left early, {tally.tokens} tokens, "
        f"{len(tally.errors)} errors, exit code {code}\nmemory in MiB: {shown}\n"
    )
    sys.stdout.writelines(f"{line}\n" for line in tally.errors[:10])
    return 1 if tally.errors or code else 0


if __name__ == "__main__":
    sys.exit(main())
