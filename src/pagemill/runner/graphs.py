"""Decode steps as captured graphs: one launch from the slots' last tokens to the next ones.

A step is captured once for each padded number of rows; rows too many stand for the spare slot and
write nowhere.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from itertools import product

from pagemill.device.base import CapturesGraphs, Graph
from pagemill.runner.decode_step import DecodeStep, Sampling

logger = logging.getLogger(__name__)

_SMALL_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_STEPS_PER_DOUBLING = 4  # beyond: padding costs at most a quarter of the rows
# What is captured at start, besides the largest size.
_FIRST_SIZES = (8, 1)


# Chats commonly have a top-p or top-k of their model's own.
_BY_USE = (Sampling.FILTERED, Sampling.TEMPERATURE, Sampling.GREEDY, Sampling.NONE)


def padded_sizes(max_rows: int) -> list[int]:
    """The numbers of rows to capture for, ascending; the last is `max_rows`."""
    sizes, size = set(_SMALL_SIZES), _SMALL_SIZES[-1]
    while size < max_rows:
        sizes |= set(range(size, 2 * size, size // _STEPS_PER_DOUBLING))
        size *= 2
    return sorted({size for size in sizes if size < max_rows} | {max_rows})


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a capture failed for lack of memory; the driver's own has no class in torch."""
    return "out of memory" in str(error)


class DecodeGraphs:
    """Implements `DecodeSteps`: graphs by size and sampling, captured when first asked for."""

    def __init__(self, step: DecodeStep, device: CapturesGraphs, max_rows: int) -> None:
        self._step = step
        self._device = device
        self._sizes = padded_sizes(max_rows)
        self._graphs: dict[tuple[int, Sampling], Graph] = {}
        self._refused: set[tuple[int, Sampling]] = set()  # there was no memory for these

    @property
    def sizes(self) -> list[int]:
        return self._sizes

    def find(self, num_rows: int, sampling: Sampling) -> Graph | None:
        """The graph for at least `num_rows` rows, captured if it is missing.

        A larger one stands in where there is no memory to capture it; None: there is none.
        """
        sizes = self._sizes[bisect_left(self._sizes, num_rows) :]
        if (sizes[0], sampling) not in self._refused:
            try:
                return self.capture(num_rows, sampling)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._refused.add((sizes[0], sampling))
                logger.warning("no memory for the CUDA graph of %d rows", sizes[0])
        captured = (self._graphs.get((size, sampling)) for size in sizes)
        return next((graph for graph in captured if graph is not None), None)

    def capture(self, num_rows: int, sampling: Sampling) -> Graph:
        """The graph for at least `num_rows` rows. No slot changes, but a new one takes a while."""
        size = self._sizes[bisect_left(self._sizes, num_rows)]
        graph = self._graphs.get((size, sampling))
        if graph is None:
            self._step.clear()
            self._step.run(size, sampling)  # compiles and allocates what outlives a step
            graph = self._device.capture(lambda: self._step.run(size, sampling))
            self._graphs[size, sampling] = graph
        return graph

    def capture_first(self) -> int:
        """Capture what is wanted from the start on; how many there are.

        That is every kind for few rows. The largest size comes first, so that the others fit into
        its memory, of which a search needs hardly any.
        """
        most = self._sizes[-1]
        sizes = (most, *(size for size in _FIRST_SIZES if size < most))
        for size, sampling in product(sizes, Sampling):
            if sampling is not Sampling.FILTERED or size <= _FIRST_SIZES[0]:
                self.capture(size, sampling)
        return len(self._graphs)

    def capture_another(self) -> bool:
        """Capture one that is missing, the commonest kind of sampling first; False if none is."""
        for sampling in _BY_USE:
            for size in reversed(self._sizes):
                if (size, sampling) not in self._graphs and (size, sampling) not in self._refused:
                    return self.find(size, sampling) is not None
        return False
