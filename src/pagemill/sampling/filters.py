"""Top-k, min-p and top-p as limits on how far a logit may lie below the row's largest.

Tokens whose logit equals the last one kept are kept as well, so the order of equal logits does not
matter. The filters compose as in vLLM: each sees the distribution that the one before it left.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS
_STEPS_PER_UNIT = 2.0**17  # resolution of the distances that top-p tells apart
_MAX_CODE = (1 << (2 * _DIGIT_BITS)) - 1  # distances from 32 up have no weight in float32


def top_k_limit(distance: Tensor, top_k: Tensor, max_top_k: int) -> Tensor:
    """The distance of the k-th nearest token, [n, 1].

    `distance` is float32 [n, vocab] >= 0, `top_k` int64 [n] from 1 to `max_top_k`.
    """
    nearest = distance.topk(max_top_k, dim=1, largest=False, sorted=True).values
    return nearest.gather(1, top_k.unsqueeze(1) - 1)


def min_p_limit(min_p: Tensor) -> Tensor:
    """The distance at which the probability is `min_p` [n] of the largest, [n, 1]."""
    return -min_p.log().unsqueeze(1)


def keep_top_p(distance: Tensor, weights: Tensor, top_p: Tensor) -> Tensor:
    """The weights of the smallest set of tokens with a share `top_p` [n] of the whole, others 0.

    `weights` is float32 [n, vocab], exp(-distance) or 0. A two-digit radix search over distances
    in fixed point, which reads the vocabulary a few times where sorting would take long.
    """
    # The second clamp is for NaN, which must not become an index out of range.
    code = (distance * _STEPS_PER_UNIT).clamp_(max=_MAX_CODE).int().clamp_(min=0)
    high = code >> _DIGIT_BITS
    by_high = _histogram(high, weights)
    target = by_high[:, -1:] * top_p.double().unsqueeze(1)
    last_high, below = _find(by_high, target)
    by_low = _histogram(code & (_DIGITS - 1), torch.where(high == last_high.int(), weights, 0.0))
    last_low, _ = _find(by_low, target - below)
    last = (last_high << _DIGIT_BITS) + last_low
    return torch.where(code <= last.int(), weights, 0.0)


def _histogram(digits: Tensor, weights: Tensor) -> Tensor:
    """The weight up to and including each digit, float64 [n, digits].

    In float64 the order in which a GPU adds the weights makes no difference that matters.
    """
    sums = torch.zeros(len(digits), _DIGITS, dtype=torch.float64, device=digits.device)
    return sums.scatter_add_(1, digits.long(), weights.double()).cumsum_(dim=1)


def _find(sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first digit at which `sums` reaches `target`, and the sum before it; [n, 1] each."""
    digit = (sums < target).sum(dim=1, keepdim=True).clamp_(max=_DIGITS - 1)
    before = sums.gather(1, (digit - 1).clamp_(min=0)) * (digit > 0)
    return digit, before
