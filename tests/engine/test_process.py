"""The engine process, its channel and the client together, with a fake in place of the model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from pagemill.config.engine import EngineConfig
from pagemill.engine.launch import EngineProcess
from pagemill.errors import EngineDeadError, InvalidParams, OverloadedError, PageMillError
from pagemill.frontend.client import ZmqEngineClient
from pagemill.frontend.monitor import EngineMonitor
from pagemill.frontend.outputs import ChoiceUpdate, Prompt
from pagemill.frontend.queue_limit import QueueLimit
from pagemill.frontend.validate import RequestValidator
from pagemill.params import SamplingParams
from unit.frontend.vocabularies import byte_level

TOKENIZER = byte_level()
FAKE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
LONG = 4000  # tokens; eight seconds of the fake engine, which waits and never computes
SOON = 5.0  # seconds, so that what ends sooner than `LONG` has been ended


def make_config(behaviour: str = "", max_queued: int = 64) -> EngineConfig:
    return EngineConfig(
        model=behaviour,
        served_model_names=("fake",),
        device="cpu",
        dtype="float32",
        max_model_len=4096,
        max_num_queued_reqs=max_queued,
        prefix_caching=False,
    )


def start_process(behaviour: str = "") -> EngineProcess:
    return EngineProcess.start(make_config(behaviour), command=FAKE)


def make_client(process: EngineProcess, max_queued: int = 64) -> ZmqEngineClient:
    config = make_config(max_queued=max_queued)
    validator = RequestValidator(
        vocab_size=TOKENIZER.vocab_size, max_logprobs=20, tokenizer=TOKENIZER
    )
    client = ZmqEngineClient(process, config, monitor=EngineMonitor(stuck_seconds=2.0))
    client.attach(validator, TOKENIZER)
    return client


@asynccontextmanager
async def running(behaviour: str = "", max_queued: int = 64) -> AsyncIterator[ZmqEngineClient]:
    client = make_client(start_process(behaviour), max_queued)
    await client.start()
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(limited())


def stream(
    client: ZmqEngineClient, text: str = "hello ", request_id: str = "r", **params: object
) -> AsyncGenerator[ChoiceUpdate, None]:
    token_ids = TOKENIZER.encode(text)
    return client.generate(Prompt(token_ids, text), SamplingParams(**params), request_id=request_id)


async def collect(updates: AsyncGenerator[ChoiceUpdate, None]) -> list[ChoiceUpdate]:
    return [update async for update in updates]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the condition, which must come true `SOON`."""
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.02)


def test_text_streams_back() -> None:
    async def scenario() -> None:
        async with running() as client:
            updates = await collect(stream(client, "hello ", max_tokens=8))
            assert TOKENIZER.decode([i for u in updates for i in u.token_ids]) == "hello hello "
            assert "".join(u.text for u in updates) == "hello hello "
            assert [u.finish_reason for u in updates if u.finish_reason] == ["length"]

    run(scenario)


def test_choices_merge_into_one_stream() -> None:
    async def scenario() -> None:
        async with running() as client:
            updates = await collect(stream(client, "abc", n=3, max_tokens=6, seed=2**63 - 1))
            for index in range(3):
                own = [u for u in updates if u.index == index]
                assert "".join(u.text for u in own) == "abcabc"
                assert own[-1].finish_reason == "length"

    run(scenario)


def test_a_stop_string_ends_the_engine_request() -> None:
    async def scenario() -> None:
        async with running() as client:
            updates = await collect(stream(client, "one two ", stop=["two"], max_tokens=LONG))
            assert "".join(u.text for u in updates) == "one "
            assert (updates[-1].finish_reason, updates[-1].stop_reason) == ("stop", "two")
            await until(lambda: client.stats.num_running == 0)

    run(scenario)


def test_closing_the_generator_aborts() -> None:
    async def scenario() -> None:
        async with running() as client:
            async with aclosing(stream(client, n=2, max_tokens=LONG)) as updates:
                await anext(updates)
                await until(lambda: client.stats.num_running == 2)
            await until(lambda: client.stats.num_running == 0)

    run(scenario)


def test_abort_by_id_ends_the_stream() -> None:
    async def scenario() -> None:
        async with running() as client:
            updates = stream(client, request_id="mine", max_tokens=LONG)
            await anext(updates)
            assert await client.abort(["mine", "other"]) == 1
            assert (await collect(updates))[-1].finish_reason == "abort"
            assert await client.abort(["mine"]) == 0

    run(scenario)


def test_a_slow_reader_gets_everything_in_few_updates() -> None:
    async def scenario() -> None:
        async with running() as client:
            updates = stream(client, "abc", max_tokens=300)
            first = await anext(updates)
            await asyncio.sleep(1.5)
            rest = await collect(updates)
            assert len(rest) <= 2
            assert first.text + "".join(u.text for u in rest) == "abc" * 100

    run(scenario)


def test_many_requests_at_once() -> None:
    async def scenario() -> None:
        async with running() as client:
            streams = [
                collect(stream(client, f"text {i} ", request_id=f"r{i}", max_tokens=20))
                for i in range(50)
            ]
            for i, updates in enumerate(await asyncio.gather(*streams)):
                token_ids = TOKENIZER.encode(f"text {i} ")
                expected = TOKENIZER.decode([token_ids[k % len(token_ids)] for k in range(20)])
                assert "".join(u.text for u in updates) == expected

    run(scenario)


def test_a_full_queue_refuses() -> None:
    async def scenario() -> None:
        async with running(max_queued=1) as client:
            held = stream(client, n=3, max_tokens=LONG)
            await anext(held)
            with pytest.raises(OverloadedError) as caught:
                await anext(stream(client, request_id="late"))
            assert caught.value.retry_after >= 1
            await held.aclose()
            assert await collect(stream(client, request_id="later", max_tokens=1))

    run(scenario)


def test_waiting_tokens_are_given_back_however_a_request_ends() -> None:
    async def scenario() -> None:
        async with running() as client:
            limit = client._limit = QueueLimit(64, max_tokens=1)  # one prompt at a time
            first = stream(client, max_tokens=LONG)
            async with aclosing(first):
                await anext(first)  # its prompt waits no longer
                assert limit._num_tokens == 0
                second = asyncio.ensure_future(anext(stream(client, request_id="s", n=2)))
                await asyncio.sleep(0)
                while not limit._num_tokens:
                    await asyncio.sleep(0)
                with pytest.raises(OverloadedError, match="tokens are waiting"):
                    await anext(stream(client, request_id="t"))
                second.cancel()
                await asyncio.gather(second, return_exceptions=True)
            await until(lambda: limit._num_tokens == 0)
            assert len(await collect(stream(client, max_tokens=2))) > 0
            assert limit._num_tokens == 0

    run(scenario)


def test_bad_requests_are_refused_before_the_engine() -> None:
    async def scenario() -> None:
        async with running() as client:
            with pytest.raises(InvalidParams):
                await anext(client.generate(Prompt([]), SamplingParams(), request_id="r"))
            held = stream(client, max_tokens=LONG)
            await anext(held)
            with pytest.raises(InvalidParams, match="already in use"):
                await anext(stream(client))
            await held.aclose()

    run(scenario)


def test_what_the_engine_refuses_is_an_error_of_that_request() -> None:
    async def scenario() -> None:
        async with running() as client:
            updates = client.generate(
                Prompt([1]), SamplingParams(max_tokens=2), request_id="r", priority=99
            )
            [update] = await collect(updates)
            assert update.finish_reason == "error"
            assert update.error == "priority 99 is not possible"
            assert client.status.state == "ready"

    run(scenario)


def test_max_tokens_0_needs_no_engine() -> None:
    async def scenario() -> None:
        async with running() as client:
            updates = await collect(stream(client, n=2, max_tokens=0))
            assert [(u.index, u.finish_reason) for u in updates] == [(0, "length"), (1, "length")]
            assert client.stats.num_steps == 0

    run(scenario)


def test_control_calls() -> None:
    async def scenario() -> None:
        async with running() as client:
            assert await client.control("echo", 1, "two") == [1, "two"]
            with pytest.raises(PageMillError, match="no control method 'jump'"):
                await client.control("jump")

    run(scenario)


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        ("raise", "RuntimeError: the device is on fire"),
        ("memory", "out of memory (of 7 GiB)"),
        ("exit", "the engine process exited with code 3"),
    ],
)
def test_a_dying_engine_fails_open_requests(behaviour: str, cause: str) -> None:
    async def scenario() -> None:
        async with running(behaviour) as client:
            updates = await collect(stream(client, n=2, max_tokens=LONG))
            last = [u for u in updates if u.finish_reason]
            assert [u.finish_reason for u in last] == ["error", "error"]
            assert all(cause in (u.error or "") for u in last)
            assert client.status.state == "failed"
            assert cause in client.status.detail
            with pytest.raises(EngineDeadError, match="engine"):
                await anext(stream(client, request_id="next"))

    run(scenario)


def test_a_killed_engine_is_noticed() -> None:
    async def scenario() -> None:
        process = start_process()
        client = make_client(process)
        await client.start()
        await client.wait_ready()
        updates = stream(client, max_tokens=LONG)
        await anext(updates)
        call = asyncio.create_task(client.control("echo"))
        os.kill(process.pid, signal.SIGKILL)
        rest = await asyncio.wait_for(collect(updates), SOON)
        assert "killed (signal 9)" in (rest[-1].error or "")
        assert client.status.state == "failed"
        await asyncio.gather(call, return_exceptions=True)
        await client.close()

    run(scenario)


def test_a_stuck_loop_is_reported() -> None:
    async def scenario() -> None:
        async with running("hang") as client:
            updates = stream(client, max_tokens=LONG)
            await anext(updates)
            await until(lambda: client.status.state == "failed")
            assert "stuck" in client.status.detail
            await updates.aclose()

    run(scenario)


def test_loading_is_reported_and_waited_for() -> None:
    async def scenario() -> None:
        client = make_client(start_process("slow-load"))
        await client.start()
        with pytest.raises(EngineDeadError, match="still loading"):
            await anext(stream(client))
        await until(lambda: client.status.phase == "reading weights")
        assert (await client.wait_ready()).max_num_seqs == 2
        assert client.status.state == "ready"
        await client.close()

    run(scenario)


def test_a_model_that_does_not_load_ends_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        process = start_process("no-model")
        client = make_client(process)
        await client.start()
        with pytest.raises(EngineDeadError, match=r"^folder/x: no such model folder$"):
            await client.wait_ready()
        await until(lambda: process.exit_cause() is not None)
        assert process.exit_cause() == "the engine process exited with code 1"
        await client.close()

    run(scenario)
    assert "Traceback" not in capfd.readouterr().err


def test_close_ends_process_and_sockets() -> None:
    async def scenario() -> None:
        process = start_process()
        client = make_client(process)
        await client.start()
        await client.wait_ready()
        os.kill(process.pid, signal.SIGINT)  # a Ctrl-C in the terminal is the parent's business
        updates = stream(client, max_tokens=LONG)
        await anext(updates)
        await client.close()
        assert (await collect(updates))[-1].finish_reason == "error"
        assert process.exit_cause() == "the engine process exited with code 0"
        assert not Path(process.address.requests.removeprefix("ipc://")).parent.exists()

    run(scenario)


def test_the_engine_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path[:0] = sys.argv[1].split(':')\n"
        "from engine.test_process import start_process\n"
        "print(start_process().pid, flush=True); time.sleep(60)"
    )
    path = ":".join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdout=subprocess.PIPE, env={"TMPDIR": str(tmp_path)}
    ) as parent:
        assert parent.stdout is not None
        engine = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([engine], timeout=5)
    assert not alive


def test_an_idle_engine_uses_no_cpu() -> None:
    async def scenario() -> None:
        process = start_process()
        client = make_client(process)
        await client.start()
        await client.wait_ready()
        usage = psutil.Process(process.pid).cpu_times
        before = usage()
        await asyncio.sleep(2)
        after = usage()
        assert after.user + after.system - before.user - before.system <= 0.05
        await client.close()

    run(scenario)
