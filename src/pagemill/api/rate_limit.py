"""How many requests and tokens a key may use in a minute, and the headers that say what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, MutableSequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from pagemill.api.errors import TooManyRequests

RATE_HEADERS = tuple(
    f"x-ratelimit-{kind}-{what}"
    for what in ("requests", "tokens")
    for kind in ("limit", "remaining", "reset")
)
NOBODY = "-"  # the key id of requests without a key
_MINUTE = 60.0
_FIELDS = 3  # of a bucket pair: requests left, tokens left, when that was


@dataclass(frozen=True, slots=True)
class RateLimits:
    """For each key and minute; 0: as many as come."""

    requests: int = 0
    tokens: int = 0


class RateLimiter(Protocol):
    """Counts what keys use. Several frontend processes may share what is behind it."""

    def take(self, key_id: str) -> None:
        """Count one request. Raises TooManyRequests with the seconds to wait and the headers."""
        ...

    def spend(self, key_id: str, num_tokens: int) -> None:
        """Count the tokens of a request that has ended."""
        ...

    def headers(self, key_id: str) -> dict[str, str]:
        """OpenAI's `x-ratelimit-…` headers; empty without limits."""
        ...


class KeyBuckets:
    """A `RateLimiter` of token buckets: a minute's worth at once, then evenly.

    How many tokens a request takes is known when it ends. So a key whose bucket of tokens is not
    empty may begin another request, and what that takes beyond the bucket must flow back before
    the next one. `cells`, all 0, may be memory that processes share, with a `lock` that they
    share, too; the clock must then be the same for all, as `time.monotonic` is.
    """

    def __init__(
        self,
        limits: RateLimits,
        key_ids: Iterable[str],
        now: Callable[[], float] = time.monotonic,
        *,
        cells: MutableSequence[float] | None = None,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self._limits = limits
        self._now = now
        ids = sorted({NOBODY, *key_ids})
        self._rows = {key_id: row * _FIELDS for row, key_id in enumerate(ids)}
        size = len(ids) * _FIELDS
        self._cells = [0.0] * size if cells is None else cells
        self._lock = nullcontext() if lock is None else lock

    @staticmethod
    def size(num_keys: int) -> int:
        """The length of `cells` for so many keys, besides requests without one."""
        return _FIELDS * (num_keys + 1)

    def take(self, key_id: str) -> None:
        """See `RateLimiter.take`."""
        limits = self._limits
        if not (limits.requests or limits.tokens):
            return
        with self._lock:
            requests, tokens = self._refill(key_id)
            allowed = (not limits.requests or requests >= 1) and (not limits.tokens or tokens >= 1)
            if allowed:
                self._cells[self._rows[key_id]] = requests - 1
        if not allowed:
            raise self._refusal(key_id, requests, tokens)

    def spend(self, key_id: str, num_tokens: int) -> None:
        """See `RateLimiter.spend`."""
        if self._limits.tokens and num_tokens:
            with self._lock:
                self._refill(key_id)
                self._cells[self._rows[key_id] + 1] -= num_tokens

    def headers(self, key_id: str) -> dict[str, str]:
        """See `RateLimiter.headers`."""
        limits = self._limits
        if not (limits.requests or limits.tokens):
            return {}
        with self._lock:
            requests, tokens = self._refill(key_id)
        found: dict[str, str] = {}
        both = (("requests", limits.requests, requests), ("tokens", limits.tokens, tokens))
        for name, limit, left in both:
            if limit:
                found[f"x-ratelimit-limit-{name}"] = str(limit)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(left)))
                found[f"x-ratelimit-reset-{name}"] = as_duration((limit - left) * _MINUTE / limit)
        return found

    def _refill(self, key_id: str) -> tuple[float, float]:
        """Let what has flowed in since the last look be there; (requests, tokens) left."""
        cells, row, now = self._cells, self._rows[key_id], self._now()
        then = cells[row + 2]
        share = min(1.0, (now - then) / _MINUTE) if then else 1.0
        full = (self._limits.requests, self._limits.tokens)
        for field, limit in enumerate(full):
            before = cells[row + field] if then else 0.0
            cells[row + field] = min(float(limit), before + share * limit)
        cells[row + 2] = now
        return cells[row], cells[row + 1]

    def _refusal(self, key_id: str, requests: float, tokens: float) -> TooManyRequests:
        limits = self._limits
        name, limit, left = "tokens", limits.tokens, tokens
        if limits.requests and requests < 1:
            name, limit, left = "requests", limits.requests, requests
        wait = math.ceil((1 - left) * _MINUTE / limit)
        return TooManyRequests(
            f"This key may use {limit} {name} a minute", wait, self.headers(key_id)
        )


def as_duration(seconds: float) -> str:
    """As OpenAI writes it: "350ms", "7s", "1m30s"."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
