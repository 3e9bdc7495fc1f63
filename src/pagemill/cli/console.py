"""What `pagemill serve` tells the person who started it: one line per phase, with seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from pagemill.cli.parser import DEFAULT_URL
from pagemill.config.pooling import PoolingConfig
from pagemill.engine.messages import EngineInfo
from pagemill.errors import PageMillError

GIB = 2**30


@dataclass
class Console:
    """Prints to `out`; seconds count from `started`, the command's start."""

    out: TextIO
    started: float = field(default_factory=time.monotonic)
    clock: Callable[[], float] = time.monotonic
    _phase: str = ""

    def line(self, text: str) -> None:
        """One line with the seconds since the start."""
        print(f"{self.clock() - self.started:7.2f} s  {text}", file=self.out, flush=True)

    def phase(self, text: str) -> None:
        """A line when the phase is a new one; what follows its colon shows only on a terminal."""
        name, _, detail = text.partition(": ")
        if name and name != self._phase:
            self._phase = name
            self.line(name)
        if detail and self.out.isatty():
            print(f"\r{'':11}{detail:<60}", end="\r", file=self.out, flush=True)

    def ready(self, url: str, info: EngineInfo, *, needs_key: bool) -> None:
        """The address, what fits, and what to try next."""
        self.line(
            f"ready: {info.device}, {info.dtype}, attention {info.attention}; weights "
            f"{info.weight_bytes / GIB:.2f} GiB, {_cache(info)}"
        )
        self.line(
            f"context {info.max_model_len:,} tokens, up to {info.max_num_seqs} requests at once"
        )
        print(f"\nPageMill answers at {url} (documentation: {url}/docs). Try:\n", file=self.out)
        print(_examples(url, info.pooling, needs_key=needs_key), file=self.out, flush=True)

    def error(self, error: PageMillError | str) -> None:
        """The one line that says what went wrong."""
        print(f"pagemill: error: {error}", file=self.out, flush=True)


def _cache(info: EngineInfo) -> str:
    if info.pooling is not None and not info.pooling.cached:
        return "no KV cache"
    return f"KV cache {info.cache_bytes / GIB:.2f} GiB = {info.cache_tokens:,} tokens"


def _examples(url: str, pooling: PoolingConfig | None, *, needs_key: bool) -> str:
    """Commands for what the model does."""
    key = " -H 'Authorization: Bearer KEY'" if needs_key else ""

    def curl(path: str, body: str) -> str:
        return f"  curl {url}{path}{key} \\\n    -H 'Content-Type: application/json' -d '{body}'\n"

    if pooling is None:
        where = "" if url == DEFAULT_URL else f" --url {url}"
        chat = f"  pagemill chat{where}{' --api-key KEY' if needs_key else ''}\n"
        body = '{"messages": [{"role": "user", "content": "Hello!"}]}'
        return curl("/v1/chat/completions", body) + chat
    if pooling.task == "embed":
        return curl("/v1/embeddings", '{"input": "Hello!"}')
    if pooling.scores_pairs:
        return curl("/v1/rerank", '{"query": "Hello?", "documents": ["Hi!", "Bye."]}')
    return curl("/classify", '{"input": "Hello!"}')
