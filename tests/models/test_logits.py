"""Logits of every architecture against transformers, whole, in chunks and in mixed batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.harness import ModelHarness, build_context
from models.tiny import TINY_MODELS, VOCAB, TinyModel, save_tiny_model
from pagemill.attention.select import select_attention
from pagemill.attention.torch_sdpa import TorchAttention
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.weights import iterate_weights
from pagemill.config.model import ModelConfig
from pagemill.models.base import Model
from pagemill.models.loader import load_model
from pagemill.ops.select import has_native_kernels, select_ops

TEXT = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(5)).tolist()
OTHER = TEXT[::-1][:23]
# (ops, attention); the C++ kernels only where they were built
KERNELS = [("reference", "torch"), *[("cpu", "cpu")] * has_native_kernels()]


@dataclass
class Pair:
    """Ours, and what transformers says of the same weights."""

    model: Model
    reference: Callable[[list[int]], Tensor]


Load = Callable[..., Pair]  # (name of a tiny model, ops="reference")


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    @cache
    def make(name: str, ops: str = "reference") -> Pair:
        return make_pair(TINY_MODELS[name], tmp_path_factory.mktemp(name), ops=ops)

    return make


def make_pair(
    tiny: TinyModel,
    folder: Path,
    change: Callable[[ModelConfig], ModelConfig] = lambda config: config,
    ops: str = "reference",
) -> Pair:
    reference = save_tiny_model(tiny, folder)
    checkpoint = open_checkpoint(folder)
    config = change(checkpoint.model_config())
    context = build_context(ops=select_ops("cpu", ops))
    return Pair(load_model(config, context, iterate_weights(checkpoint)), reference)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", TINY_MODELS)
def test_whole_text_matches_transformers(load: Load, name: str) -> None:
    pair = load(name)
    ours = ModelHarness(pair.model, TorchAttention()).whole(TEXT)
    assert relative_error(ours, pair.reference(TEXT)) < 2e-5


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels[0])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_chunks_of_five_match_transformers(load: Load, name: str, kernels: tuple[str, str]) -> None:
    pair = load(name, kernels[0])
    ours = ModelHarness(pair.model, select_attention("cpu", kernels[1])).chunked(TEXT, 5)
    assert relative_error(ours, pair.reference(TEXT)) < 2e-5


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen3", "gemma3"])
def test_mixed_batch_matches_transformers(load: Load, name: str) -> None:
    """Prompts of two lengths, single tokens and a chunk of another text in one step."""
    pair = load(name)
    harness = ModelHarness(pair.model, TorchAttention())
    harness.step({0: TEXT[:30], 1: OTHER[:9]})
    harness.step({1: OTHER[9:10], 0: TEXT[30:31], 2: TEXT[:12]})
    last = harness.step({2: TEXT[12:15], 0: TEXT[31:32], 1: OTHER[10:11], 3: OTHER})
    assert relative_error(last[0], pair.reference(TEXT[:32])[31:]) < 2e-5
    assert relative_error(last[1], pair.reference(OTHER[:11])[10:]) < 2e-5
    assert relative_error(last[2], pair.reference(TEXT[:15])[12:]) < 2e-5
    assert relative_error(last[3], pair.reference(OTHER)) < 2e-5


@pytest.mark.parametrize("served", [16, len(TEXT)])
def test_dynamic_rope_is_fixed_for_the_served_length(tmp_path: Path, served: int) -> None:
    """Trained for 16 tokens: unscaled when no more are served, else as for the longest text."""
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    tiny = TinyModel("LlamaConfig", {"rope_parameters": rope, "max_position_embeddings": 16})
    pair = make_pair(tiny, tmp_path, lambda config: replace(config, max_position=served))
    ours = ModelHarness(pair.model, TorchAttention()).chunked(TEXT[:served], 7)
    assert relative_error(ours, pair.reference(TEXT[:served])) < 2e-5


def test_window_is_what_makes_mistral_differ(load: Load) -> None:
    """The test above would not notice a window that is ignored if it did not matter."""
    pair = load("mistral-window")
    far = [TEXT[0] + 1, *TEXT[1:]]
    ours, changed = (ModelHarness(pair.model, TorchAttention()).whole(text) for text in (TEXT, far))
    reach = 3 * (7 - 1)  # three layers, each sees six tokens back
    assert torch.equal(ours[reach + 1 :], changed[reach + 1 :])
    assert not torch.allclose(ours[reach], changed[reach])


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    reference = save_tiny_model(TINY_MODELS["llama"], tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    context = build_context(torch.bfloat16)
    model = load_model(checkpoint.model_config(), context, iterate_weights(checkpoint))
    ours = ModelHarness(model, TorchAttention(), dtype=torch.bfloat16).chunked(TEXT, 9).float()
    expected = reference(TEXT)
    # transformers' own bfloat16 run is off by 0.043, this one by 0.033
    assert (ours - expected).square().mean() < 0.04**2 * expected.square().mean()
