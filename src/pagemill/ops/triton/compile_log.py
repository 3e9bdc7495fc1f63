"""Notices kernels that are compiled where they are launched, which holds up whatever runs."""

from __future__ import annotations

import logging
from typing import Any

from triton import knobs

logger = logging.getLogger(__name__)


class CompileLog:
    """Counts, and once the engine serves also logs, kernels that were not in the cache folder."""

    def __init__(self) -> None:
        self.compiled = 0
        self.serving = False
        knobs.compilation.listener = self._note

    def _note(self, *, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        if cache_hit:
            return
        self.compiled += 1
        if self.serving:
            logger.warning(
                "the kernel %s was compiled for %.1f s while requests may wait",
                src.name,
                times.total / 1e6,
            )
