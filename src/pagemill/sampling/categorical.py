"""Draw from a distribution over the vocabulary that is given by weights."""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 128


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The tokens at which the cumulative weight passes `uniform` of the whole.

    `weights` is float32 [n, vocab], not normalised; `uniform` float64 [n] in [0, 1). Returns int64
    [n], never a token of weight zero; 0 for a row without any weight. Works in two levels, groups
    of tokens and tokens of one group, so that sums stay exact and the vocabulary is read once.
    """
    padding = -weights.shape[1] % _GROUP
    if padding:
        weights = torch.nn.functional.pad(weights, (0, padding))
    groups = weights.view(len(weights), -1, _GROUP)  # [n, vocab / 128, 128]
    group, within = _pass(groups.sum(dim=2), uniform)
    members = groups.gather(1, group.view(-1, 1, 1).expand(-1, 1, _GROUP)).squeeze(1)
    member, _ = _pass(members, within)
    return group * _GROUP + member


def _pass(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The column [n] where the running sum of [n, m] passes `uniform`, and the fraction of it."""
    weights = weights.double()
    sums = weights.cumsum(dim=1)
    total = sums[:, -1:]
    target = uniform.unsqueeze(1) * total
    # Rounding can bring the target up to the total; the last column of any weight is then meant.
    column = torch.minimum((sums <= target).sum(1), (sums < total).sum(1)).unsqueeze(1)
    weight = weights.gather(1, column)
    fraction = (target - (sums.gather(1, column) - weight)) / weight
    return column.squeeze(1), fraction.nan_to_num(0.0).clamp(0.0, 1.0).squeeze(1)
