"""Updates of several tokens each, for callers who want few of them."""

from __future__ import annotations

from pagemill.engine.messages import RequestDelta
from pagemill.frontend.mailbox import merge_update
from pagemill.frontend.output_processor import OutputProcessor
from pagemill.frontend.outputs import ChoiceUpdate


class PacedProcessor:
    """Holds the updates of an `OutputProcessor` back until they have `interval` tokens together.

    The first tokens and the end are passed on at once.
    """

    def __init__(self, inner: OutputProcessor, interval: int) -> None:
        self._inner = inner
        self._interval = interval
        self._held: ChoiceUpdate | None = None
        self._has_begun = False

    @property
    def finished(self) -> bool:
        return self._inner.finished

    @property
    def stopped_early(self) -> bool:
        return self._inner.stopped_early

    def process(self, delta: RequestDelta) -> ChoiceUpdate | None:
        """What is due now, with everything that was held back."""
        return self._due(self._inner.process(delta))

    def fail(self, error: str) -> ChoiceUpdate | None:
        """See `OutputProcessor.fail`."""
        return self._due(self._inner.fail(error))

    def _due(self, update: ChoiceUpdate | None) -> ChoiceUpdate | None:
        if update is None:
            return None
        if self._held is None:
            self._held = update
        else:
            merge_update(self._held, update)
        held = self._held
        full = not self._has_begun or len(held.token_ids) >= self._interval
        if held.finish_reason is None and not full:
            return None
        self._held, self._has_begun = None, True
        return held
