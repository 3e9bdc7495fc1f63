from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from pagemill.params import SamplingParams
from pagemill.sampling.rejection import count_accepted
from unit.sampling.harness import Slots, admission, distribution

VOCAB = 12


def test_drafts_are_accepted_up_to_the_first_difference() -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 4], [7, 2, 3, 4], [1, 2, 3, 4]])
    drafts = torch.tensor([[1, 2, 3]] * 4)
    assert count_accepted(tokens, drafts, torch.tensor([3, 3, 3, 1])).tolist() == [3, 2, 0, 1]


def test_sequences_with_drafts_are_distributed_as_without() -> None:
    """Two tokens of a chain whose second distribution depends on the first, with a fixed draft."""
    table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3)) * 1.5
    first = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4)) * 1.5
    params, trials, draft = SamplingParams(top_k=6), 20_000, int(first.argmax())
    slots = Slots(VOCAB)
    slots.admit(admission(0, params, seed=8))
    index = torch.arange(trials) * 2
    tokens = torch.tensor(
        [
            slots.draw(first.expand(trials, -1), [0] * trials, index.tolist()),
            slots.draw(table[draft].expand(trials, -1), [0] * trials, (index + 1).tolist()),
        ]
    ).T
    accepted = count_accepted(tokens, torch.full((trials, 1), draft), torch.ones(trials))
    p_first = distribution(first.double().numpy(), params)
    p_second = distribution(table[draft].double().numpy(), params)
    assert abs(accepted.double().mean() - p_first[draft]) < 0.02
    pairs = np.zeros((VOCAB, VOCAB + 1))  # the last column: no second token in this step
    for (one, two), count in zip(tokens.tolist(), accepted.tolist(), strict=True):
        pairs[one, two if count else VOCAB] += 1
    expected = np.zeros_like(pairs)
    expected[:, VOCAB] = p_first
    expected[draft] = np.append(p_first[draft] * p_second, 0.0)
    seen = expected > 0
    assert pairs[~seen].sum() == 0
    assert stats.chisquare(pairs[seen], expected[seen] * trials).pvalue > 1e-4
