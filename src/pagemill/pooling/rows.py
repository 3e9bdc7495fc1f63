"""The rows of a step that pool, in the order that suits the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pagemill.scheduler.batch import Batch

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SortedBatch:
    """A batch whose rows of equal length are neighbours; `order` [n] are its rows' old places."""

    batch: Batch
    order: Int64


def by_length(batch: Batch) -> SortedBatch:
    """Sort the rows, and their tokens, by the number of tokens."""
    lengths = batch.num_query.astype(np.int64)
    order = np.argsort(lengths, kind="stable")
    if (order[1:] > order[:-1]).all():
        return SortedBatch(batch, order)
    starts = np.cumsum(lengths) - lengths
    moved = lengths[order]
    ends = np.cumsum(moved)
    tokens = np.arange(ends[-1]) + np.repeat(starts[order] - (ends - moved), moved)
    return SortedBatch(
        replace(
            batch,
            slots=batch.slots[order],
            num_query=batch.num_query[order],
            num_drafts=batch.num_drafts[order],
            start=batch.start[order],
            samples=batch.samples[order],
            resident=batch.resident[order],
            prompt_tokens=batch.prompt_tokens[tokens],
        ),
        order,
    )
