"""Tiny random models made with transformers, one for every architecture and kind of rope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 160
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough for attention to matter
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class TinyModel:
    """`config_class` and `keys` as transformers knows them."""

    config_class: str
    keys: dict[str, Any]


def _llama_rope(theta: float = 10_000.0, **rope: Any) -> TinyModel:
    return TinyModel("LlamaConfig", {"rope_parameters": {"rope_theta": theta, **rope}})


TINY_MODELS = {
    "llama": _llama_rope(rope_type="default"),
    "llama-linear": _llama_rope(rope_type="linear", factor=4.0),
    "llama-llama3": _llama_rope(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "llama-yarn": _llama_rope(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4.0
    ),
    "llama-yarn-mscale": _llama_rope(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=32,
        mscale=1.5,
        mscale_all_dim=0.5,
        beta_fast=4.0,
    ),
    "llama-biases-tied": TinyModel(
        "LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    ),
    "mistral-window": TinyModel("MistralConfig", {"sliding_window": 7, "head_dim": 32}),
    "qwen2": TinyModel("Qwen2Config", {}),
    "qwen2-window": TinyModel(
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": TinyModel("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma3": TinyModel(
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "sliding_window": 6,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 8.0,
                    "rope_theta": 1_000_000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "query_pre_attn_scalar": 20,
            "final_logit_softcapping": 5.0,
        },
    ),
}


def save_tiny_model(tiny: TinyModel, folder: Path) -> Callable[[list[int]], Any]:
    """Write a random model as transformers does; returns ids -> its float32 logits [T, vocab]."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, tiny.config_class)(**(SIZES | tiny.keys))
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():  # initialised biases are zero and norms one: make both count
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)

    def logits(ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]

    return logits
