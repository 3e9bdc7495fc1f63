"""Steps with prompts as captured graphs: one launch where the host would need hundreds.

A graph is captured for a padded number of tokens and of rows, where what counts is how many there
are of each, not whose they are: rows with prompts, chunks of them and rows with one token are all
the same to it. Padding tokens belong to no row and are written nowhere; padding rows have no
tokens.

There are hundreds of such pairs, so only those that come up are captured: some at start, more
while idle, and under load a pair whose eager steps have cost as much as its capture does, which
costs at most twice what knowing the future would (Karlin et al., 1988: "Competitive snoopy
caching"). Until then a graph that is not much larger stands in, or else the step runs eagerly.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pagemill.attention.base import ForwardBatch
from pagemill.device.base import CapturesGraphs, Graph
from pagemill.models.base import Model
from pagemill.ops.packed import PackedInputs, PackedOps, PackedRows
from pagemill.runner.decode_step import DecodeModel, Sampling, decode_state
from pagemill.runner.graphs import is_out_of_memory
from pagemill.runner.inputs import BatchLayout, plan_layers
from pagemill.runner.packed_fields import PackedFields
from pagemill.runner.slots import SlotState
from pagemill.scheduler.batch import Batch

logger = logging.getLogger(__name__)

# Tokens that sizes are apart, up to so many. The smallest is more than attention takes for drafts.
_STEPS = ((128, 128), (1024, 64), (2048, 128), (4096, 256))
# Tokens times weights: beyond, a device computes for longer than the host needs to launch.
_MOST_WORK = 8e12
_SMALL_ROWS = (1, 8, 32)
_ROW_STEPS_PER_DOUBLING = 2
# A graph may stand in for a smaller one up to these, and beyond them up to a share: weights are
# read once whatever few tokens there are, and padding rows only cost logits.
_CHEAP_TOKENS, _TOKENS_SHARE = 512, 1.25
_CHEAP_ROWS, _ROWS_SHARE = 32, 2
# Captures take about 50 ms, and an eager step loses some 10 ms.
_EAGER_STEPS = 4
_MOST_GRAPHS = 160
_FIRST_TOKENS = (1024, 512, 256, 128)  # of one prompt alone, captured at start
_IDLE_ROWS, _IDLE_TOKENS = (1, 8), 1024
# The kinds of graphs that a step may take, the best first. A search that no row needs only costs
# launches: one kind is captured ahead, and stands in for the other wherever there is one.
_RANDOM = (Sampling.TEMPERATURE, Sampling.FILTERED)
_KINDS = {
    Sampling.NONE: (Sampling.NONE,),
    Sampling.GREEDY: _RANDOM,
    Sampling.TEMPERATURE: _RANDOM,
    Sampling.FILTERED: (Sampling.FILTERED,),
}


@dataclass(frozen=True, slots=True)
class Size:
    """What a graph is captured for. Steps of greedy rows have graphs of TEMPERATURE."""

    num_tokens: int
    num_rows: int
    sampling: Sampling


def token_sizes(max_tokens: int) -> list[int]:
    """The numbers of tokens to capture for, ascending, up to the first that holds `max_tokens`."""
    sizes = [0]
    for most, step in _STEPS:
        sizes += range(sizes[-1] + step, most + 1, step)
    return sizes[1 : 2 + bisect_left(sizes[1:], max_tokens)]


def row_sizes(max_rows: int) -> list[int]:
    """The numbers of rows to capture for, ascending; the last is `max_rows`."""
    sizes, size = set(_SMALL_ROWS), 2 * _SMALL_ROWS[-1]
    while size < max_rows:
        sizes |= set(range(size, 2 * size, size // _ROW_STEPS_PER_DOUBLING))
        size *= 2
    return sorted({size for size in sizes if size < max_rows} | {max_rows})


def _between(sizes: list[int], low: int, high: int) -> list[int]:
    """The first of the ascending `sizes` that is at least `low`, and more up to `high`."""
    first = bisect_left(sizes, low)
    return sizes[first : max(first + 1, bisect_right(sizes, high))]


def token_limit(model: Model) -> int:
    """How many tokens a step may have for graphs to be worth their memory and padding."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    return int(_MOST_WORK / max(1, sum(weight.numel() for weight in weights)))


class PackedGraphs:
    """Graphs of steps with prompts, and their inputs and outputs."""

    def __init__(
        self,
        model: DecodeModel,
        ops: PackedOps,
        device: CapturesGraphs,
        slots: SlotState,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        self._model = model
        self._ops = ops
        self._device = device
        self._state = decode_state(slots)
        self._more_tables = list(slots.block_tables[1:])
        self._token_sizes = token_sizes(min(max_tokens, token_limit(model.model)))
        self._row_sizes = row_sizes(max_rows)
        on_device = slots.length.device
        self._fields = PackedFields(max_rows, self._token_sizes[-1], slots.scratch, on_device)
        self._tokens = torch.zeros(max_rows, dtype=torch.int32, device=on_device)
        self._lengths = torch.zeros(max_rows, dtype=torch.int64, device=on_device)
        self._hidden: Tensor | None = None  # [max_rows, hidden], once its width is known
        self._graphs: dict[Size, Graph] = {}
        self._most_graphs = _MOST_GRAPHS
        self._eager_steps: Counter[Size] = Counter()  # of what is not captured yet

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def find(self, num_tokens: int, num_rows: int, sampling: Sampling) -> Graph | None:
        """A graph that holds such a step without much padding; None: it runs eagerly.

        Captures it, which takes a while, when it has been missed often enough.
        """
        wanted = None
        for size in self._fitting(num_tokens, num_rows, sampling):
            if size in self._graphs:
                return self._graphs[size]
            wanted = wanted or size
        if wanted is None:
            return None
        self._eager_steps[wanted] += 1
        if self._eager_steps[wanted] < _EAGER_STEPS or self._full:
            return None
        return self._capture_if_it_fits(wanted)

    def capture_first(self) -> int:
        """Capture what is wanted from the start on; how many there are."""
        sizes = [s for s in _FIRST_TOKENS if s <= self._token_sizes[-1]]
        for num_tokens in sizes:  # the largest first: the others fit into its memory
            self.capture(Size(num_tokens, self._row_sizes[0], Sampling.FILTERED))
        return len(sizes)

    def capture_missed(self) -> bool:
        """Capture what eager steps would have needed, the commonest first; False if nothing is."""
        if self._full or not self._eager_steps:
            return False
        return self._capture_if_it_fits(self._eager_steps.most_common(1)[0][0]) is not None

    def capture_another(self) -> bool:
        """Capture one for few rows that is missing; False if none is."""
        for size in self._common():
            if size not in self._graphs and not self._full:
                return self._capture_if_it_fits(size) is not None
        return False

    def capture(self, size: Size) -> Graph:
        """Capture a graph now. No slot changes."""
        self._fields.clear()
        self._step(size)  # compiles and allocates what outlives a step
        graph = self._device.capture(lambda: self._step(size))
        self._graphs[size] = graph
        self._eager_steps.pop(size, None)
        return graph

    def pack(self, batch: Batch, layout: BatchLayout) -> dict[str, NDArray[Any]]:
        """What `update` needs on the device."""
        return self._fields.pack(batch, layout)

    def update(self, fields: dict[str, Tensor]) -> None:
        """Take in the rows of the next replay."""
        self._fields.update(fields)

    def tokens(self, num_rows: int) -> Tensor:
        """What the last replay has sampled, [n] int32, 0 where a row does not sample."""
        return self._tokens[:num_rows]

    def hidden(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Of each row's last token in the last replay without sampling.

        Hidden states [n, hidden], and the places [n] int64 of the tokens that follow.
        """
        assert self._hidden is not None
        return self._hidden[:num_rows], self._lengths[:num_rows]

    @property
    def _full(self) -> bool:
        return len(self._graphs) >= self._most_graphs

    def _fitting(self, num_tokens: int, num_rows: int, sampling: Sampling) -> Iterator[Size]:
        """What may be replayed for such a step, the least padding first."""
        most_tokens = max(_CHEAP_TOKENS, int(_TOKENS_SHARE * num_tokens))
        most_rows = max(_CHEAP_ROWS, _ROWS_SHARE * num_rows)
        tokens = _between(self._token_sizes, num_tokens, most_tokens)
        rows = _between(self._row_sizes, num_rows, most_rows)
        return (Size(t, r, kind) for t, r, kind in product(tokens, rows, _KINDS[sampling]))

    def _common(self) -> Iterator[Size]:
        rows = [size for size in self._row_sizes if size <= _IDLE_ROWS[-1]]
        tokens = [size for size in self._token_sizes if size <= _IDLE_TOKENS]
        for num_rows, num_tokens in product(rows, tokens):
            yield Size(num_tokens, num_rows, Sampling.FILTERED)

    def _capture_if_it_fits(self, size: Size) -> Graph | None:
        """None where memory lacks: then no more are tried."""
        try:
            return self.capture(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._most_graphs = len(self._graphs)
            logger.warning("no memory for more CUDA graphs: other steps with prompts go without")
            return None

    def _step(self, size: Size) -> None:
        own = self._model
        rows = self._fields.rows(size.num_rows, size.num_tokens)
        inputs = self._ops.packed_inputs(rows, self._state, own.block_size)
        forward = self._forward_batch(rows, inputs)
        plan_layers(forward, self._more_tables_of(forward, rows), own.layer_tables)
        hidden = own.model.forward(forward)[inputs.last_tokens]
        if size.sampling is Sampling.NONE:
            self._keep(hidden, inputs.seq_lens)
            return
        logits = own.model.compute_logits(hidden)
        tokens = self._ops.sample(logits, inputs.sampling, size.sampling.filters)
        self._ops.packed_advance(rows, self._state, tokens, self._tokens[: size.num_rows])

    def _keep(self, hidden: Tensor, lengths: Tensor) -> None:
        if self._hidden is None:
            self._hidden = hidden.new_empty(self._row_sizes[-1], hidden.shape[1])
        self._hidden[: len(hidden)] = hidden
        self._lengths[: len(lengths)] = lengths

    def _more_tables_of(self, forward: ForwardBatch, rows: PackedRows) -> list[ForwardBatch]:
        """The batch with each block table but the first; only few models have more."""
        more = []
        for table in self._more_tables:
            state = replace(self._state, block_table=table)
            inputs = self._ops.packed_inputs(rows, state, self._model.block_size)
            block_table, mapping = inputs.block_table, inputs.slot_mapping
            more.append(replace(forward, block_table=block_table, slot_mapping=mapping))
        return more

    def _forward_batch(self, rows: PackedRows, inputs: PackedInputs) -> ForwardBatch:
        num_tokens = len(rows.token_rows)
        return ForwardBatch(
            input_ids=inputs.input_ids,
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            query_start=rows.query_start,
            seq_lens=inputs.seq_lens,
            block_table=inputs.block_table,
            logits_rows=inputs.last_tokens,
            num_seqs=len(rows.slots),
            num_tokens=num_tokens,
            max_query_len=num_tokens,
            max_seq_len=self._state.block_table.shape[1] * self._model.block_size,
            kv_cache=self._model.kv_cache,
            attention=self._model.attention,
        )
