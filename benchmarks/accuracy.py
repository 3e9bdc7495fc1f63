"""What quantisation costs: perplexity and greedy agreement with float32 on a fixed text.

Keys and values are read from the cache, in the type that --caches names, those of the chunk at hand
as well. python benchmarks/accuracy.py MODEL --quantizations int8,int4 --caches auto,int8
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from itertools import product

import torch

from kernels.cpu_steps import CACHE_TYPES, load, make_batch
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.source import resolve_model
from pagemill.checkpoint.tokenizer_spec import load_tokenizer

_CHUNK = 500


def fixed_text(model: str, count: int) -> list[int]:
    """The first tokens of the Python manual's topics, which every installation has."""
    tokenizer = load_tokenizer(open_checkpoint(resolve_model(model).path))
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return list(tokenizer.encode(text[: 8 * count]).ids[:count])


@torch.inference_mode()
def teacher_forced(
    name: str,
    quantization: str,
    dtype: torch.dtype,
    tokens: list[int],
    cache_type: torch.dtype | None = None,
) -> tuple[float, torch.Tensor]:
    """Perplexity of the text, and the most likely token at each place."""
    model, caches = load(name, quantization, len(tokens), dtype, cache_type)
    ids = torch.tensor(tokens)
    losses, best = [], []
    for start in range(0, len(tokens) - 1, _CHUNK):
        count = min(_CHUNK, len(tokens) - 1 - start)
        batch = make_batch(caches, 1, count, start)
        batch.input_ids = ids[start : start + count]
        logits = model.compute_logits(model.forward(batch)).float()
        targets = ids[start + 1 : start + 1 + count]
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        best.append(logits.argmax(dim=1))
    return float(torch.cat(losses).mean().exp()), torch.cat(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--quantizations", default="int8,int4")
    parser.add_argument("--caches", default="auto", help="auto, float32, float16, int8")
    parser.add_argument("--bfloat16", action="store_true", help="compare bfloat16 as well")
    parser.add_argument("--tokens", type=int, default=2000)
    args = parser.parse_args()
    tokens = fixed_text(args.model, args.tokens)
    base, expected = teacher_forced(args.model, "none", torch.float32, tokens)
    print(f"none, float32: perplexity {base:.3f}")
    cases = [(name, torch.float32) for name in args.quantizations.split(",") if name]
    cases += [("none", torch.bfloat16)] if args.bfloat16 else []
    for (quantization, dtype), cache in product(cases, args.caches.split(",")):
        cache_type = CACHE_TYPES[cache]
        perplexity, best = teacher_forced(args.model, quantization, dtype, tokens, cache_type)
        agree = (best == expected).float().mean()
        print(
            f"{quantization}, {dtype}, cache {cache}: perplexity {perplexity:.3f} "
            f"({100 * (perplexity / base - 1):+.2f} %), {100 * agree:.1f} % of tokens agree"
        )


if __name__ == "__main__":
    main()
