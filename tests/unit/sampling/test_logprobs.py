from __future__ import annotations

import torch

from pagemill.sampling.logprobs import prompt_logprobs, top_logprobs


def test_log_probabilities_are_those_of_a_softmax() -> None:
    logits = torch.randn(7, 100) * 5
    tokens = torch.randint(0, 100, (7,))
    result = top_logprobs(logits, tokens, 4, 3)
    expected = logits.double().log_softmax(1)
    torch.testing.assert_close(
        result.logprobs.double(), expected.gather(1, result.token_ids), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(result.token_ids[:, 0], tokens)
    assert torch.equal(result.token_ids[:, 1:], expected.topk(4).indices)
    order = expected.argsort(1, descending=True)
    assert [order[i].tolist().index(t) + 1 for i, t in enumerate(tokens.tolist())] == (
        result.ranks.tolist()
    )


def test_prompts_are_scored_in_chunks() -> None:
    head = torch.randn(16, 60)
    hidden, targets = torch.randn(600, 16), torch.randint(0, 60, (600,))
    sizes = []

    def compute_logits(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return rows @ head

    result = prompt_logprobs(hidden, targets, 2, compute_logits, 100)
    whole = top_logprobs(hidden @ head, targets, 2, 600)
    torch.testing.assert_close(result.logprobs, whole.logprobs, atol=1e-5, rtol=1e-5)
    assert torch.equal(result.ranks, whole.ranks)
    assert max(sizes) < 600 and sum(sizes) == 600


def test_no_top_tokens_gives_the_chosen_one_alone() -> None:
    assert top_logprobs(torch.randn(3, 9), torch.tensor([1, 2, 3]), 0, 2).token_ids.shape == (3, 1)
