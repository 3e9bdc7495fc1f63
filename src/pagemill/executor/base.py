"""The seam between the engine loop and whatever runs the model: one process, many, or a fake."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pagemill.engine.messages import EngineInfo
from pagemill.scheduler.batch import Batch
from pagemill.scheduler.result import StepResult


class PendingResult(Protocol):
    """A result that the device has still to produce."""

    def wait(self) -> StepResult:
        """Block until the step is done."""
        ...


class Runner(Protocol):
    """Runs batches in order on one device, for text or for vectors."""

    def forward(self, batch: Batch) -> None: ...

    def sample(self, batch: Batch, bitmask: NDArray[np.int32] | None = None) -> PendingResult: ...

    def capture_another(self) -> bool:
        """Capture a graph that is still missing, while no step is in flight; whether one was."""
        ...


class Executor(Protocol):
    """Runs batches in order. Neither call blocks on the device."""

    @property
    def info(self) -> EngineInfo: ...

    def forward(self, batch: Batch) -> None:
        """Enqueue the model's forward pass."""
        ...

    def sample(self, batch: Batch, bitmask: NDArray[np.int32] | None = None) -> PendingResult:
        """Enqueue sampling. `bitmask` is [len(grammar_rows), ceil(vocab / 32)], 1 = allowed."""
        ...

    def use_idle_time(self) -> bool:
        """Prepare for steps that may come, for a moment; False when nothing is left to do.

        No step is in flight.
        """
        ...

    def control(self, method: str, args: list[Any]) -> Any:
        """Run a rarely used operation (sleep, wake, profile) between steps."""
        ...

    def shutdown(self) -> None: ...
