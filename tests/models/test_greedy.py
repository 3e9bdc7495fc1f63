"""Greedy tokens of tiny random models through the whole engine equal transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.tiny import TINY_MODELS, save_tiny_model
from pagemill import LLM, SamplingParams

TIE = 1e-4
NEW_TOKENS = 16
PROMPTS = [
    [3 + (7 * i + 5 * j) % 150 for j in range(length)] for i, length in enumerate((1, 4, 9, 30, 41))
]


def greedy_or_tie(logits: Any, prompt: list[int], output: list[int]) -> bool:
    """Whether each token is what transformers chooses after the ones before it, ties apart."""
    scores = logits(prompt + output)[len(prompt) - 1 : -1]
    for token, row in zip(output, scores, strict=True):
        best = torch.topk(row, 2).values
        tie = float(best[0] - best[1]) < TIE
        if token != int(row.argmax()) and not tie:
            return False
    return True


@pytest.mark.parametrize("name", ["llama-llama3", "mistral-window", "qwen2", "qwen3", "gemma3"])
def test_greedy_tokens_match_transformers(tmp_path: Path, name: str) -> None:
    logits = save_tiny_model(TINY_MODELS[name], tmp_path)
    llm = LLM(
        str(tmp_path),
        dtype="float32",
        skip_tokenizer_init=True,
        max_num_batched_tokens=16,
        kv_cache_bytes=2**20,
    )
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False)
    llm.shutdown()
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        assert len(tokens) == NEW_TOKENS
        assert greedy_or_tie(logits, prompt, tokens), (name, len(prompt))
