"""Weights by name: what is missing, unknown or of the wrong shape is named; random weights run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.harness import ModelHarness, build_context
from pagemill.attention.torch_sdpa import TorchAttention
from pagemill.config.model import ModelConfig, RopeConfig
from pagemill.errors import ConfigError, ModelLoadError
from pagemill.layers.rope import rope_table
from pagemill.models.loader import load_model
from pagemill.models.registry import SUPPORTED_ARCHITECTURES, build_model
from pagemill.models.weights import weight_slots
from pagemill.ops import select
from pagemill.ops.select import select_ops
from pagemill.quant.select import select_quant
from pagemill.quant.unquantized import Unquantized

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_position=64,
    norm_eps=1e-5,
    rope=RopeConfig(),
)


def random_weights(config: ModelConfig = CONFIG) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    slots = weight_slots(build_model(config, build_context()))
    return {n: torch.randn(s.shape, generator=generator) for n, s in slots.items()}


def test_names_are_those_of_hugging_face() -> None:
    names = set(random_weights())
    assert len(names) == 3 + 2 * 9
    assert {
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    } <= names


def test_order_of_the_tensors_does_not_matter() -> None:
    weights = random_weights()
    logits = [
        ModelHarness(load_model(CONFIG, build_context(), items), TorchAttention()).whole([4, 9, 2])
        for items in (weights.items(), reversed(weights.items()))
    ]
    assert torch.equal(*logits)


def test_missing_tensor_is_named() -> None:
    weights = random_weights()
    del weights["model.layers.1.self_attn.v_proj.weight"]
    with pytest.raises(ModelLoadError, match=r"lacks 1 .* model\.layers\.1\.self_attn\.v_proj"):
        load_model(CONFIG, build_context(), weights.items())


def test_unknown_tensor_is_named() -> None:
    weights = random_weights() | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}
    with pytest.raises(ModelLoadError, match=r"layers\.0\.self_attn\.q_proj\.bias is unknown"):
        load_model(CONFIG, build_context(), weights.items())


def test_wrong_shape_is_named() -> None:
    weights = random_weights() | {"model.norm.weight": torch.zeros(17)}
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight has shape \[17\].* \[16\]"):
        load_model(CONFIG, build_context(), weights.items())


def test_tensor_given_twice_is_refused() -> None:
    items = [*random_weights().items()]
    with pytest.raises(ModelLoadError, match="given twice"):
        load_model(CONFIG, build_context(), [items[0], *items])


def test_computed_buffers_are_ignored() -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    load_model(CONFIG, build_context(), (random_weights() | extra).items())


def test_a_tied_head_shares_the_embedding() -> None:
    config = replace(CONFIG, tie_embeddings=True)
    weights = random_weights(config)
    assert "lm_head.weight" not in weights
    stored_twice = weights | {"lm_head.weight": torch.zeros(50, 16)}
    model = load_model(config, build_context(), stored_twice.items())
    assert isinstance(model, nn.Module)
    shared = model.get_parameter("lm_head.weight")
    assert shared.data_ptr() == model.get_parameter("model.embed_tokens.weight").data_ptr()
    assert torch.equal(shared, weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_random_weights_give_finite_logits(architecture: str, dtype: torch.dtype) -> None:
    gelu = {"activation": "gelu_pytorch_tanh"} if architecture.startswith("Gemma") else {}
    config = replace(CONFIG, architecture=architecture, **gelu)
    first, again, other = (
        ModelHarness(
            load_model(config, build_context(dtype), None, seed=seed), TorchAttention(), dtype=dtype
        ).whole([5, 6, 7, 8])
        for seed in (1, 1, 2)
    )
    assert first.isfinite().all() and first.std() > 0
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "MambaForCausalLM"}, "'MambaForCausalLM' is not supported; .*Llama"),
        ({"activation": "relu"}, "activation 'relu'"),
        ({"rope": RopeConfig(kind="longrope")}, "rope type 'longrope'"),
        ({"rope": RopeConfig(rotary_dim=2)}, "rotating 2 of 4"),
        (
            {"rope": RopeConfig(kind="llama3_factors", params={"factors": [1.0]})},
            "1 rope factors do not fit",
        ),
        ({"quantization": {"quant_method": "awq"}}, "quantised with awq"),
    ],
)
def test_unsupported_models_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_model(replace(CONFIG, **change), build_context(), None)  # type: ignore[arg-type]


def test_gguf_frequency_factors_equal_llama3_scaling() -> None:
    """A GGUF file holds the result of the llama3 formula as divisors."""
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    device = torch.device("cpu")
    plain, scaled = (
        rope_table(RopeConfig(kind=kind, params=params), 16, 2, device)
        for kind, params in (("default", {}), ("llama3", llama3))
    )
    factors = plain[1, 8:].asin() / scaled[1, 8:].asin()
    rope = RopeConfig(kind="llama3_factors", params={"factors": factors.tolist()})
    assert torch.allclose(rope_table(rope, 16, 2, device), scaled, atol=1e-6)


def test_quantisation_is_selected_by_name() -> None:
    ops = build_context().ops
    assert isinstance(select_quant("none", "cpu", ops, torch.bfloat16), Unquantized)
    with pytest.raises(ConfigError, match="'q7' is unknown on cpu"):
        select_quant("q7", "cpu", ops, torch.float32)
    with pytest.raises(ConfigError, match="'int8' is unknown on cuda"):
        select_quant("int8", "cuda", ops, torch.float32)


def test_native_kernels_that_were_not_built_are_missed_politely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    ops = build_context().ops
    with pytest.raises(ConfigError, match=r"needs the C\+\+ kernels"):
        select_ops("cpu", "cpu")
    with pytest.raises(ConfigError, match=r"needs the C\+\+ kernels"):
        select_quant("int8", "cpu", ops, torch.float32)
