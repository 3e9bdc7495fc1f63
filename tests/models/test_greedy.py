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


def test_windows_and_full_attention_side_by_side(tmp_path: Path) -> None:
    """Long texts in a small cache: blocks behind the window go to others, hits need both kinds."""
    logits = save_tiny_model(TINY_MODELS["gemma3"], tmp_path)
    llm = LLM(
        str(tmp_path),
        dtype="float32",
        skip_tokenizer_init=True,
        max_num_batched_tokens=8,
        kv_cache_bytes=14 * 2**15,
    )
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, detokenize=False)
    prompts = [PROMPTS[4][:length] for length in (41, 33, 20)] + PROMPTS[:3]
    asked = [{"prompt_token_ids": p} for p in prompts]
    first = llm.generate(asked, params, use_tqdm=False)
    # What goes on where the first outputs ended finds them in the cache.
    asked += [{"prompt_token_ids": [*r.prompt_token_ids, *r.outputs[0].token_ids]} for r in first]
    more = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    second = llm.generate(asked, more, use_tqdm=False)
    engine = llm._engine
    stats, groups = engine.stats(), engine.info.cache_groups
    llm.shutdown()
    assert [group.window for group in groups] == [0, 6]
    assert stats.num_preemptions > 0 and stats.prefix_cache_hits > 0
    for result in first + second:
        tokens = list(result.outputs[0].token_ids)
        assert greedy_or_tie(logits, list(result.prompt_token_ids), tokens), result.prompt_token_ids
