"""Perplexity of a fixed text in the model's type, with float8 weights, and with a float8 cache.

    PYTHONPATH=src python3 benchmarks/perplexity.py [MODEL] [--device cuda] [--tokens 2000]

MODEL is a folder, a .gguf file or a built-in name; the text is docs/architecture.md. On a CPU the
kernels are those of `ops/reference.py`, which round as the device's do: numbers of accuracy hold,
numbers of speed do not.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pagemill.attention.base import ForwardBatch
from pagemill.attention.select import select_attention
from pagemill.checkpoint.base import Checkpoint
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.source import resolve_model
from pagemill.checkpoint.tokenizer_spec import load_tokenizer
from pagemill.checkpoint.weights import iterate_weights
from pagemill.device.select import select_device
from pagemill.layers.base import BuildContext
from pagemill.models.causal_lm import CausalLM
from pagemill.models.loader import load_model
from pagemill.ops.fp8 import Fp8Ops
from pagemill.ops.select import select_ops
from pagemill.quant.base import QuantMethod
from pagemill.quant.fp8 import Fp8
from pagemill.quant.unquantized import Unquantized
from pagemill.runner.memory import allocate_cache

TEXT = Path(__file__).parent.parent / "docs/architecture.md"
BLOCK_SIZE = 16
CHUNK = 256  # tokens of a step: prompts are computed in pieces, reading the cache


@dataclass(frozen=True)
class Form:
    """How weights and cache are held."""

    name: str
    dtype: torch.dtype
    weights: str  # "plain" | "fp8" | "fp8-all" | "fp8-block"
    cache: torch.dtype


def forms(dtype: torch.dtype) -> list[Form]:
    fp8 = torch.float8_e4m3fn
    return [
        Form("plain", dtype, "plain", dtype),
        Form("fp8 weights", dtype, "fp8", dtype),
        Form("fp8 weights, all layers", dtype, "fp8-all", dtype),
        Form("fp8 weights, grouped", dtype, "fp8-block", dtype),
        Form("fp8 cache", dtype, "plain", fp8),
        Form("fp8 weights and cache", dtype, "fp8", fp8),
    ]


class Scorer:
    """Log-probabilities of one text under several forms of a model."""

    def __init__(self, checkpoint: Checkpoint, device: str, tokens: list[int]) -> None:
        self._checkpoint = checkpoint
        self._device = select_device(device)
        self._ops = select_ops(device, "default" if device == "cuda" else "reference")
        self._attention = select_attention(device, "default" if device == "cuda" else "torch")
        self._tokens = torch.tensor(tokens, device=self._device.torch_device)

    @torch.inference_mode()
    def mean_logprob(self, form: Form) -> float:
        config = replace(self._checkpoint.model_config(), max_position=4096)
        context = BuildContext(
            self._device.torch_device, form.dtype, self._ops, self._quant(form.weights)
        )
        model = load_model(config, context, iterate_weights(self._checkpoint))
        assert isinstance(model, CausalLM)
        num_blocks = len(self._tokens) // BLOCK_SIZE + 2
        specs = model.kv_cache_specs()
        cache = allocate_cache(self._device, specs, num_blocks, BLOCK_SIZE, form.cache)
        total = 0.0
        for start in range(0, len(self._tokens) - 1, CHUNK):
            end = min(start + CHUNK, len(self._tokens) - 1)
            batch = self._batch(start, end, num_blocks)
            batch.kv_cache, batch.attention = cache, self._attention
            batch.plan = self._attention.plan(batch)
            logits = model.compute_logits(model.forward(batch)).float()
            taken = self._tokens[start + 1 : end + 1, None]
            total += float(logits.log_softmax(-1).gather(1, taken).sum())
        return total / (len(self._tokens) - 1)

    def _quant(self, weights: str) -> QuantMethod:
        if weights == "plain":
            return Unquantized(self._ops)
        assert isinstance(self._ops, Fp8Ops)
        grouped, every_layer = weights == "fp8-block", weights == "fp8-all"
        return Fp8(self._ops, self._ops, grouped=grouped, every_layer=every_layer)

    def _batch(self, start: int, end: int, num_blocks: int) -> ForwardBatch:
        where = self._device.torch_device
        positions = torch.arange(start, end, device=where)

        def ints(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=where)

        return ForwardBatch(
            input_ids=self._tokens[start:end],
            positions=positions,
            slot_mapping=positions + BLOCK_SIZE,  # block 0 belongs to nobody
            query_start=ints([0, end - start]),
            seq_lens=ints([end]),
            block_table=ints(list(range(1, num_blocks))).unsqueeze(0),
            logits_rows=torch.arange(end - start, device=where),
            num_seqs=1,
            num_tokens=end - start,
            max_query_len=end - start,
            max_seq_len=end,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tokens", type=int, default=2000)
    args = parser.parse_args()
    checkpoint = open_checkpoint(resolve_model(args.model).path)
    tokenizer = load_tokenizer(checkpoint)
    tokens = tokenizer.encode(TEXT.read_text()).ids[: args.tokens]
    scorer = Scorer(checkpoint, args.device, tokens)
    plain = 0.0
    for form in forms(getattr(torch, args.dtype)):
        perplexity = math.exp(-scorer.mean_logprob(form))
        plain = plain or perplexity
        change = 100 * (perplexity / plain - 1)
        print(f"{form.name:24s} perplexity {perplexity:8.4f} ({change:+.2f} %)", flush=True)


if __name__ == "__main__":
    main()
