"""The sockets between frontends and an engine: ZeroMQ over ipc, msgpack messages, no pickle.

Each direction is a PUSH/PULL pair without a high-water mark, so sending never blocks: the queue
limit bounds what frontends send, and a frontend always reads. The reading side binds; the writing
side may connect before that, and its messages wait.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from pagemill.engine.messages import FromEngine, ToEngine

MESSAGES_PER_TURN = 4  # that a frontend handles before its readers run
FINAL_LINGER_MS = 1000  # how long an engine that stops still tries to deliver


class EngineAddress(msgspec.Struct, frozen=True):
    """Where an engine reads, and where each frontend does; a client id indexes `outputs`."""

    requests: str
    outputs: tuple[str, ...]

    @classmethod
    def in_folder(cls, folder: Path, num_clients: int = 1) -> EngineAddress:
        """Socket files in a folder that only this user may enter."""
        outputs = tuple(f"ipc://{folder}/client-{i}" for i in range(num_clients))
        return cls(requests=f"ipc://{folder}/engine", outputs=outputs)


class EngineChannel:
    """The engine's end. Only for the thread that made it."""

    def __init__(self, address: EngineAddress) -> None:
        self._context = zmq.Context()
        self._requests = _socket(self._context, zmq.PULL)
        self._requests.bind(address.requests)
        self._outputs = [_socket(self._context, zmq.PUSH) for _ in address.outputs]
        for socket, endpoint in zip(self._outputs, address.outputs, strict=True):
            socket.connect(endpoint)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)

    @property
    def num_clients(self) -> int:
        return len(self._outputs)

    def wait(self, seconds: float) -> bool:
        """Sleep until a message is there, `seconds` at most; whether there is one."""
        return bool(self._requests.poll(max(0, math.ceil(seconds * 1000))))

    def receive(self, limit: int) -> list[ToEngine]:
        """At most `limit` of the messages that are there; never waits."""
        messages: list[ToEngine] = []
        while len(messages) < limit:
            try:
                frame = self._requests.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            messages.append(self._decoder.decode(frame))
        return messages

    def send(self, client_id: int, message: FromEngine) -> None:
        self._outputs[client_id].send(self._encoder.encode(message))

    def broadcast(self, message: FromEngine) -> None:
        """Send to every frontend."""
        data = self._encoder.encode(message)
        for socket in self._outputs:
            socket.send(data)

    def close(self) -> None:
        self._context.destroy(linger=FINAL_LINGER_MS)


class ClientChannel:
    """A frontend's end, on the event loop that runs `listen`."""

    def __init__(self, address: EngineAddress, client_id: int) -> None:
        self._context = zmq.Context()
        self._outputs = _socket(self._context, zmq.PULL)
        self._outputs.bind(address.outputs[client_id])
        self._requests = _socket(self._context, zmq.PUSH)
        self._requests.connect(address.requests)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: ToEngine) -> None:
        """Queue a message; never waits, so it may be called while a generator closes."""
        self._requests.send(self._encoder.encode(message))

    async def listen(self, handle: Callable[[FromEngine], None]) -> None:
        """Give every message to `handle`, until it is cancelled.

        The event loop calls the socket's reader by itself: with a message for every token, waking
        a task for each would cost more than the message. What `handle` raises is logged by the
        loop, and the next message is read.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            if ended.done():
                return
            # The socket announces a message once. So it is read until it is empty, whatever
            # happens here, and others get their turn in between.
            again = loop.call_soon(read)
            for _ in range(MESSAGES_PER_TURN):
                try:
                    frame = self._outputs.recv(zmq.NOBLOCK)
                except zmq.Again:
                    again.cancel()
                    return
                handle(self._decoder.decode(frame))

        descriptor = int(self._outputs.getsockopt(zmq.FD))
        loop.add_reader(descriptor, read)
        try:
            read()
            await ended
        finally:
            ended.cancel()
            loop.remove_reader(descriptor)

    def close(self) -> None:
        self._requests.close(linger=0)
        self._outputs.close(linger=0)
        self._context.term()


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.set_hwm(0)
    return socket
