"""One request of a benchmark: what is sent, and what came back when."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Call:
    """A request to send `start` seconds after the beginning; `body` is its JSON."""

    body: bytes
    input_len: int  # tokens
    output_len: int  # tokens asked for
    start: float = 0.0


@dataclass(slots=True)
class Record:
    """How a request went. Times are `time.perf_counter()` seconds, the same for all processes.

    `times` has the arrival of every event with a choice. `error` is empty when it succeeded.
    """

    input_len: int
    sent: float = 0.0
    ended: float = 0.0
    times: list[float] = field(default_factory=list)
    output_len: int = 0
    error: str = ""
    text: bytes = b""  # the raw stream, only when it is asked for

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.sent if self.times else 0.0

    @property
    def latency(self) -> float:
        """Seconds to the last token."""
        return (self.times[-1] if self.times else self.ended) - self.sent

    @property
    def tpot(self) -> float:
        """Seconds for each token after the first."""
        return (self.latency - self.ttft) / (self.output_len - 1) if self.output_len > 1 else 0.0

    @property
    def itls(self) -> list[float]:
        """Seconds between events."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
