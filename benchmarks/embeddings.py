"""Embeddings per second of PageMill and of plain torch with padding, in one run.

    python benchmarks/embeddings.py [--texts 512] [--rounds 3] [--threads 2]

The model is all-MiniLM-L6-v2 in float32. The other side is what sentence-transformers does: texts
sorted by length, batches of 32 padded to their longest, transformers' model, mean, normalised.
Both read the same texts, of 4 to 200 words, and their vectors are compared. Rounds alternate; the
best of each is printed.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from pagemill import LLM
from pagemill.checkpoint.builtin import builtin_path

WORDS = (
    "the",
    "of",
    "a",
    "vector",
    "page",
    "quick",
    "attention",
    "and",
    "in",
    "river",
    "cold",
    "two",
)
MAX_TOKENS = 256


def make_texts(count: int) -> list[str]:
    """Mostly short, some long, as passages and queries are."""
    rng = random.Random(0)
    lengths = [min(200, 4 + int(rng.expovariate(1 / 40))) for _ in range(count)]
    return [" ".join(rng.choices(WORDS, k=length)) for length in lengths]


class Padded:
    """Plain torch, as sentence-transformers runs it."""

    def __init__(self, batch_size: int) -> None:
        folder = builtin_path("minilm", Path())
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()
        self._batch_size = batch_size

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = np.zeros((len(texts), 384), np.float32)
        for first in range(0, len(order), self._batch_size):
            chosen = order[first : first + self._batch_size]
            inputs = self._tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            states = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            means = (states * mask).sum(1) / mask.sum(1)
            vectors[chosen] = torch.nn.functional.normalize(means).numpy()
        return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    texts = make_texts(args.texts)
    padded, llm = Padded(32), LLM("minilm", dtype="float32", threads=args.threads)
    best = {"padded": float("inf"), "pagemill": float("inf")}
    num_tokens = 0
    for _ in range(args.rounds):
        start = time.perf_counter()
        reference = padded.embed(texts)
        best["padded"] = min(best["padded"], time.perf_counter() - start)
        start = time.perf_counter()
        outputs = llm.embed(texts, use_tqdm=False)
        best["pagemill"] = min(best["pagemill"], time.perf_counter() - start)
        vectors = np.array([output.outputs.embedding for output in outputs], np.float32)
        num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    print(f"{len(texts)} texts, {num_tokens} tokens, {torch.get_num_threads()} threads")
    for name, seconds in best.items():
        print(f"{name}: {len(texts) / seconds:.1f} texts/s, {num_tokens / seconds:.0f} tokens/s")
    print(f"ratio {best['padded'] / best['pagemill']:.2f}")
    print(f"largest difference {np.abs(vectors - reference).max():.1e}")


if __name__ == "__main__":
    main()
