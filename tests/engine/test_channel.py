"""Messages between engine and frontend: every one arrives, in order, and at once."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pagemill.engine.channel import ClientChannel, EngineAddress, EngineChannel
from pagemill.engine.messages import Control, ControlResult, FromEngine

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@contextmanager
def engine(num_answers: Callable[[int], int]) -> Iterator[EngineAddress]:
    """Answers each call with as many results as `num_answers` says, from a thread."""
    with tempfile.TemporaryDirectory() as folder:
        address = EngineAddress.in_folder(Path(folder))
        stop = threading.Event()

        def answer() -> None:
            channel = EngineChannel(address)
            while not stop.is_set():
                channel.wait(0.02)
                for message in channel.receive(100):
                    assert isinstance(message, Control)
                    for number in range(num_answers(message.call_id)):
                        channel.send(0, ControlResult(message.call_id, number))
            channel.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield address
        finally:
            stop.set()
            thread.join()


def exchange(
    address: EngineAddress, num_calls: int, num_answers: Callable[[int], int], loop: Any
) -> None:
    """Each call waits for the answers to the one before: a lost wake-up would stop it."""

    async def scenario() -> None:
        channel = ClientChannel(address, 0)
        answers: asyncio.Queue[ControlResult] = asyncio.Queue()

        def handle(message: FromEngine) -> None:
            assert isinstance(message, ControlResult)
            answers.put_nowait(message)
            if message.result == 3:
                raise ValueError("one handler fails")  # the next message comes all the same

        listening = asyncio.create_task(channel.listen(handle))
        for call_id in range(num_calls):
            channel.send(Control(call_id, 0, "x"))
            for number in range(num_answers(call_id)):
                found = await asyncio.wait_for(answers.get(), 5)
                assert (found.call_id, found.result) == (call_id, number)
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        channel.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.get_loop().set_exception_handler(lambda *_: None)
        runner.run(scenario())


@pytest.mark.parametrize("loop", LOOPS)
def test_single_messages_wake_the_reader(loop: Any) -> None:
    with engine(lambda _: 1) as address:
        exchange(address, 1000, lambda _: 1, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_bursts_arrive_completely_and_in_order(loop: Any) -> None:
    def count(call_id: int) -> int:
        return 1 + call_id * 7 % 40

    with engine(count) as address:
        exchange(address, 100, count, loop)
