"""Steps as CUDA graphs through the whole engine: the tokens of a run without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pagemill import LLM, SamplingParams
from pagemill.device.base import Graph
from pagemill.runner import packed_graphs
from pagemill.runner.decode_step import Sampling
from pagemill.runner.packed_graphs import PackedGraphs
from pagemill.runner.runner import ModelRunner

pytestmark = pytest.mark.gpu

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 999,
}
PARAMS = (
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 0.7, "top_p": 0.8, "seed": 2},
    {"temperature": 0.7, "top_k": 20, "seed": 3},
    {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "seed": 4},
    {"temperature": 1.1, "min_p": 0.05, "seed": 5},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.0, "logprobs": 3},
)
CHATS = (2, 3, 4, 5)  # all of them have filters
KINDS = [(0,), (0, 1), CHATS, (0, 1, *CHATS), tuple(range(len(PARAMS)))]


def generate(folder: Path, eager: bool, kinds: tuple[int, ...]) -> list[list[int]]:
    llm = LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=32,
        kv_cache_bytes=64 << 20,
        enforce_eager=eager,
        device="cuda",
    )
    prompts = [[7 + i, *range(20, 30 + 3 * i)] for i in range(20)]
    params = [
        SamplingParams(max_tokens=10 + 7 * i, ignore_eos=True, **PARAMS[kinds[i % len(kinds)]])
        for i in range(len(prompts))
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    # One request alone takes the fused kernels.
    alone = llm.generate(prompts[0], SamplingParams(temperature=0.0, max_tokens=60), use_tqdm=False)
    llm.shutdown()
    return [list(o.outputs[0].token_ids) for o in [*outputs, *alone]]


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_same_tokens_as_without_graphs(
    tmp_path: Path, kinds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    choose, chosen = ModelRunner._graph_sampling, []

    def noted(self: ModelRunner, *step: Any) -> Sampling:
        chosen.append(choose(self, *step))
        return chosen[-1]

    monkeypatch.setattr(ModelRunner, "_graph_sampling", noted)
    ours = generate(tmp_path, False, kinds)
    assert (Sampling.NONE in chosen) == (max(kinds) > max(CHATS))
    assert (Sampling.FILTERED in chosen) == any(kind in CHATS for kind in kinds)
    num_steps = len(chosen)
    assert ours == generate(tmp_path, True, kinds)
    assert len(chosen) == num_steps


def generate_in_turn(
    folder: Path, eager: bool, kinds: tuple[int, ...], max_tokens: int
) -> list[list[int]]:
    """More requests than rows, so that prompts, or chunks of them, join rows that generate."""
    llm = LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=max_tokens,
        enable_prefix_caching=False,
        kv_cache_bytes=64 << 20,
        enforce_eager=eager,
        device="cuda",
    )
    prompts = [[7 + i, *range(20, 21 + 37 * i % 200)] for i in range(60)]
    params = [
        SamplingParams(max_tokens=5 + 7 * i % 30, ignore_eos=True, **PARAMS[kinds[i % len(kinds)]])
        for i in range(len(prompts))
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm.shutdown()
    return [list(o.outputs[0].token_ids) for o in outputs]


@pytest.mark.parametrize("max_tokens", [64, 512])
@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_same_tokens_with_prompts_in_graphs(
    tmp_path: Path, kinds: tuple[int, ...], max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    find, found = PackedGraphs.find, []

    def counted(self: PackedGraphs, *step: Any) -> Graph | None:
        found.append(find(self, *step))
        return found[-1]

    monkeypatch.setattr(PackedGraphs, "find", counted)
    monkeypatch.setattr(packed_graphs, "_EAGER_STEPS", 2)
    ours = generate_in_turn(tmp_path, False, kinds, max_tokens)
    assert sum(graph is not None for graph in found) > len(found) // 2 > 5
    num_steps = len(found)
    assert ours == generate_in_turn(tmp_path, True, kinds, max_tokens)
    assert len(found) == num_steps


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("eager", [False, True])
def test_sleep_frees_the_device_and_waking_captures_anew(
    tmp_path: Path, eager: bool, level: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    llm = LLM(
        str(tmp_path),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=32,
        kv_cache_bytes=256 << 20,
        enforce_eager=eager,
        device="cuda",
    )
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    prompts = [[7 + i, *range(20, 30 + 3 * i)] for i in range(20)]

    def tokens() -> list[list[int]]:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    first = tokens()
    for _ in range(2):
        allocated = torch.cuda.memory_allocated()
        free = torch.cuda.mem_get_info()[0]
        llm.sleep(level)
        # What stays are tables of the attention and of the sampler, not weights or pages.
        assert torch.cuda.memory_allocated() < allocated // 20
        assert torch.cuda.mem_get_info()[0] > free + (256 << 20)
        llm.wake_up()
        assert tokens() == first
    llm.shutdown()
