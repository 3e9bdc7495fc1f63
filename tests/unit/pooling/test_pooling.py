"""Pooling by itself: which states count, what is cut, and the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagemill.config.pooling import PoolingConfig
from pagemill.params import PoolingParams
from pagemill.pooling.finish import activate, finish
from pagemill.pooling.methods import METHODS
from pagemill.pooling.rows import by_length
from pagemill.scheduler.batch import Batch, NewBlocks

EMBEDDER = PoolingConfig(task="embed", method="mean", width=4)


def batch_of(lengths: list[int]) -> Batch:
    """Rows whose tokens tell their row: 100 * row + place."""
    n = len(lengths)
    tokens = [100 * row + i for row, length in enumerate(lengths) for i in range(length)]
    nothing = np.zeros(0, np.int32)
    return Batch(
        slots=np.arange(n, dtype=np.int32) + 7,
        num_query=np.array(lengths, np.int32),
        num_drafts=np.zeros(n, np.int32),
        start=np.arange(n, dtype=np.int32),
        samples=np.arange(n) % 2 == 0,
        resident=np.zeros(n, np.bool_),
        prompt_tokens=np.array(tokens, np.int32),
        new_blocks=NewBlocks(nothing, nothing, nothing),
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_rows_of_one_length_become_neighbours(lengths: list[int]) -> None:
    before = batch_of(lengths)
    moved = by_length(before)
    after, order = moved.batch, moved.order
    assert after.num_query.tolist() == sorted(lengths)
    for name in ("slots", "num_query", "start", "samples"):
        assert (getattr(after, name) == getattr(before, name)[order]).all()
    ends = np.cumsum(after.num_query)
    for row, end in zip(order, ends, strict=True):
        own = after.prompt_tokens[end - lengths[row] : end]
        assert own.tolist() == [100 * row + i for i in range(lengths[row])]


def test_methods_on_rows_with_gaps() -> None:
    hidden = torch.arange(16.0).view(8, 2)
    starts, ends = torch.tensor([1, 5]), torch.tensor([4, 6])
    assert METHODS["cls"](hidden, starts, ends, 4).tolist() == [[2, 3], [10, 11]]
    assert METHODS["last"](hidden, starts, ends, 4).tolist() == [[6, 7], [10, 11]]
    assert METHODS["mean"](hidden, starts, ends, 4).tolist() == [[4, 5], [10, 11]]


def test_a_cut_embedding_has_length_one_again() -> None:
    values = np.array([3, 4, 12, 84], np.float32)
    short = finish(values, PoolingParams(dimensions=2), EMBEDDER)
    assert short.tolist() == pytest.approx([0.6, 0.8])
    raw = finish(values, PoolingParams(dimensions=3, use_activation=False), EMBEDDER)
    assert raw.tolist() == [3, 4, 12]
    assert np.linalg.norm(finish(values, PoolingParams(), EMBEDDER)) == pytest.approx(1)
    zero = finish(np.zeros(4, np.float32), PoolingParams(), EMBEDDER)
    assert zero.tolist() == [0] * 4


def test_activations_of_large_numbers() -> None:
    values = np.array([-1e4, 0, 1e4], np.float32)
    assert activate(values, "sigmoid").tolist() == [0, 0.5, 1]
    assert activate(values, "softmax").tolist() == [0, 0, 1]
    assert activate(values, "none") is values
