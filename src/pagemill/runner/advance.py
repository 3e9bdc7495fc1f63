"""Move the device's counters on by what a step has sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.runner.inputs import BatchLayout
from pagemill.runner.slots import SlotState
from pagemill.sampling.base import AcceptedTokens
from pagemill.sampling.rejection import count_accepted


def advance(
    layout: BatchLayout, fields: dict[str, Tensor], tokens: Tensor, state: SlotState
) -> AcceptedTokens:
    """Accept drafts, and set length and last token of every slot in the step.

    `tokens` [L] int64 are the draws for the rows of logits.
    """
    slots = fields["slots"]
    by_row = _by_row(layout, fields, tokens)
    num_drafts, samples = fields.get("num_drafts"), fields.get("samples")
    num_tokens = torch.ones_like(slots)
    if layout.max_drafts:
        drafts = state.next_input[slots, 1 : 1 + layout.max_drafts]
        if num_drafts is None:
            num_drafts = torch.full_like(slots, layout.max_drafts)
        num_tokens = 1 + count_accepted(by_row, drafts, num_drafts)
    if samples is not None:
        num_tokens = num_tokens * samples
    before = state.length[slots]
    grown = _growth(layout, fields, num_tokens)
    state.length[slots] = before + grown
    last = by_row
    if layout.max_drafts:
        last = by_row.gather(1, (num_tokens - 1).clamp(min=0).unsqueeze(1))
    state.next_input[slots, 0] = last.squeeze(1)
    # The first new token stands behind all tokens that are now in the cache but the new ones.
    index = before + grown - num_tokens + 1
    return AcceptedTokens(layout.slots, slots, by_row, num_tokens, index)


def _by_row(layout: BatchLayout, fields: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The draws as [n, 1 + max_drafts], 0 where a row has none."""
    if layout.uniform or layout.one_each:
        return tokens.view(len(layout.slots), 1 + layout.max_drafts)
    by_row = tokens.new_zeros(len(layout.slots), 1 + layout.max_drafts)
    by_row[fields["logit_row"], fields["logit_offset"]] = tokens
    return by_row


def _growth(layout: BatchLayout, fields: dict[str, Tensor], num_tokens: Tensor) -> Tensor:
    """How many of the query tokens of each row stay in the cache: all but rejected drafts."""
    if layout.uniform:
        return num_tokens
    num_query = fields["num_query"]
    if layout.one_each:
        return num_query
    return num_query - (1 + fields["num_drafts"]) * fields["samples"] + num_tokens
