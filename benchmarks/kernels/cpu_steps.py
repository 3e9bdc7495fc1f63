"""Steps of a model on the CPU: milliseconds for decode rows and for prompts, products apart.

OMP_WAIT_POLICY and GOMP_SPINCOUNT decide what waiting threads do; the engine sets the latter.
python benchmarks/kernels/cpu_steps.py MODEL --quantization int8 --context 300
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch

from pagemill.attention.base import ForwardBatch, LayerCache
from pagemill.attention.select import select_attention
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.source import resolve_model
from pagemill.checkpoint.weights import iterate_weights
from pagemill.device.select import select_device
from pagemill.layers.base import BuildContext
from pagemill.models.base import Model
from pagemill.models.loader import load_model
from pagemill.ops.deterministic import DeterministicOps
from pagemill.ops.sampling import SamplingOps
from pagemill.ops.select import select_ops
from pagemill.quant.select import select_quant
from pagemill.runner.memory import allocate_cache

BLOCK = 16
NUM_BLOCKS = 1024
CACHE_TYPES = {"auto": None, **{t: getattr(torch, t) for t in ("float32", "float16", "int8")}}


def load(
    name: str,
    quantization: str,
    max_position: int,
    dtype: torch.dtype = torch.float32,
    cache_type: torch.dtype | None = None,
    *,
    fine: bool = False,
) -> tuple[Model, list[LayerCache]]:
    """With `fine` products are never in coarser codes, as in deterministic mode."""
    checkpoint = open_checkpoint(resolve_model(name).path)
    config = replace(checkpoint.model_config(), max_position=max_position)
    ops = select_ops("cpu")
    chosen_for = DeterministicOps(ops, "cpu") if fine else ops
    quant = select_quant(quantization, "cpu", chosen_for, dtype)
    context = BuildContext(torch.device("cpu"), quant.activations or dtype, ops, quant)
    began = time.perf_counter()
    weights = iterate_weights(checkpoint, keep_groups=quant.keeps_groups)
    model = load_model(config, context, weights)
    print(f"loaded in {time.perf_counter() - began:.2f} s")
    if cache_type is None:
        cache_type = dtype if quant.name == "none" else torch.float16
    specs = model.kv_cache_specs()
    return model, allocate_cache(select_device("cpu"), specs, NUM_BLOCKS, BLOCK, cache_type)


def make_batch(caches: list[LayerCache], rows: int, queries: int, past: int) -> ForwardBatch:
    per_row = -(-(past + queries) // BLOCK)
    table = (1 + torch.arange(rows * per_row).view(rows, per_row)).int()
    positions = torch.arange(past, past + queries).repeat(rows)
    row = torch.arange(rows).repeat_interleave(queries)
    slots = table[row, positions // BLOCK].long() * BLOCK + positions % BLOCK
    batch = ForwardBatch(
        input_ids=torch.randint(100, 40000, (rows * queries,)),
        positions=positions,
        slot_mapping=slots,
        query_start=torch.arange(0, rows * queries + 1, queries).int(),
        seq_lens=torch.full((rows,), past + queries, dtype=torch.int32),
        block_table=table,
        logits_rows=torch.arange(rows) * queries + queries - 1,
        num_seqs=rows,
        num_tokens=rows * queries,
        max_query_len=queries,
        max_seq_len=past + queries,
        kv_cache=caches,
        attention=select_attention("cpu"),
    )
    assert batch.attention is not None
    batch.plan = batch.attention.plan(batch)
    return batch


def milliseconds(work: Callable[[], object], seconds: float) -> tuple[float, float]:
    """The least and the median time of a call."""
    work()
    times: list[float] = []
    while sum(times) < seconds:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    times.sort()
    return 1e3 * times[0], 1e3 * times[len(times) // 2]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--cache", default="auto", choices=CACHE_TYPES)
    parser.add_argument("--context", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--shapes", default="1x1,8x1,32x1,1x128,1x256,2x256")
    parser.add_argument("--fine", action="store_true", help="never in coarser codes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    longest, cache = args.context + 1024, CACHE_TYPES[args.cache]
    model, caches = load(args.model, args.quantization, longest, dtype, cache, fine=args.fine)
    ops = select_ops("cpu")
    greedy = ops.argmax if isinstance(ops, SamplingOps) else partial(torch.argmax, dim=1)
    for shape in args.shapes.split(","):
        rows, queries = map(int, shape.split("x"))
        past = args.context if queries == 1 else 0
        batch = make_batch(caches, rows, queries, past)
        layers = milliseconds(lambda batch=batch: model.forward(batch), args.seconds)
        hidden = model.forward(batch)[batch.logits_rows]
        head = milliseconds(lambda hidden=hidden: model.compute_logits(hidden), args.seconds / 4)
        logits = model.compute_logits(hidden)
        draw = milliseconds(lambda logits=logits: greedy(logits), args.seconds / 8)
        each = rows * queries
        print(
            f"{rows:3} rows x {queries:3} tokens after {past}: layers {layers[0]:.2f} "
            f"(median {layers[1]:.2f}) ms, vocabulary {head[0]:.2f}, argmax {draw[0]:.3f}; "
            f"{1e3 * each / (layers[0] + head[0] + draw[0]):.0f} tok/s"
        )


if __name__ == "__main__":
    main()
