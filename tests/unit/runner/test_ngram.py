from __future__ import annotations

import numpy as np
import pytest
import torch

from pagemill.speculative.ngram import NgramSpeculator


def reference(text: list[int], num_drafts: int, max_ngram: int = 3) -> list[int]:
    """The continuation of the latest earlier occurrence of the longest n-gram that ends `text`."""
    for n in range(max_ngram, 0, -1):
        for end in range(len(text) - 2, n - 2, -1):
            if len(text) > n and text[end - n + 1 : end + 1] == text[-n:]:
                after = text[end + 1 :]
                return [after[i % len(after)] for i in range(num_drafts)]
    return [text[-1]] * num_drafts


def propose(texts: list[list[int]], num_drafts: int, width: int) -> list[list[int]]:
    tokens = torch.full((len(texts), width), 99, dtype=torch.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text, dtype=torch.int32)
    lengths = torch.tensor([len(text) for text in texts])
    return NgramSpeculator(num_drafts).propose(tokens, lengths).tolist()


@pytest.mark.parametrize(
    ("text", "drafts"),
    [
        ([1, 2, 3, 4, 9, 2, 3], [4, 9, 2]),
        ([1, 2, 3], [3, 3, 3]),
        ([5], [5, 5, 5]),
        ([7, 7], [7, 7, 7]),
        ([1, 2, 1, 2, 1], [2, 1, 2]),
    ],
)
def test_what_followed_before_is_proposed(text: list[int], drafts: list[int]) -> None:
    assert propose([text], 3, 20) == [drafts]


@pytest.mark.parametrize("num_drafts", [1, 2, 5])
def test_rows_of_all_lengths_match_the_reference(num_drafts: int) -> None:
    rng = np.random.default_rng(num_drafts)
    texts = [rng.integers(0, 4, rng.integers(1, 40)).tolist() for _ in range(200)]
    expected = [reference(text, num_drafts) for text in texts]
    assert propose(texts, num_drafts, max(map(len, texts))) == expected


def test_the_end_of_a_text_is_not_before_its_beginning() -> None:
    assert propose([[2, 9, 3, 1, 9, 5, 1, 2]], 1, 8) == [[9]]
    assert propose([[2, 9, 5, 7, 2, 3, 2, 2]], 1, 8) == [[2]]
