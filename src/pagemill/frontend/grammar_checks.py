"""Refuses grammars that cannot be enforced, beside the event loop and within limits."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import msgspec

from pagemill.errors import GrammarError, OverloadedError
from pagemill.params import StructuredOutputs

NUM_THREADS = 2  # a slow grammar does not hold up the next one
MAX_WAITING = 64
MAX_SECONDS = 10.0
_REMEMBERED = 256  # digests of grammars that were found good


class GrammarChecks:
    """One per server. The check runs in native code that lets other threads go on meanwhile."""

    def __init__(self, max_waiting: int = MAX_WAITING, max_seconds: float = MAX_SECONDS) -> None:
        self._max_waiting = max_waiting
        self._max_seconds = max_seconds
        self._num_waiting = 0
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar-check")
        self._good: OrderedDict[bytes, None] = OrderedDict()

    async def check(self, spec: StructuredOutputs) -> None:
        """Raises GrammarError with the reason, OverloadedError when too many checks wait."""
        digest = blake2b(msgspec.msgpack.encode(spec), digest_size=16).digest()
        if digest in self._good:
            self._good.move_to_end(digest)
            return
        if self._num_waiting >= self._max_waiting:
            raise OverloadedError(f"{self._num_waiting} grammars wait to be checked already")
        self._num_waiting += 1
        try:
            await self._run(spec)
        finally:
            self._num_waiting -= 1
        self._good[digest] = None
        if len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)

    async def _run(self, spec: StructuredOutputs) -> None:
        from pagemill.grammar.source import check_grammar

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._max_seconds):
                await loop.run_in_executor(self._pool, check_grammar, spec)
        except TimeoutError:
            raise GrammarError(
                f"the grammar was not checked within {self._max_seconds:g} seconds; simplify it",
                param="structured_outputs",
            ) from None

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
