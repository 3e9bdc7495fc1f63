"""Hugging Face config.json -> ModelConfig.

Reads both spellings of the rotary parameters: `rope_theta` + `rope_scaling` (transformers 4) and
`rope_parameters` (transformers 5), which for Gemma 3 is nested by layer type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pagemill.checkpoint.fields import Fields, checkpoint_dtype
from pagemill.checkpoint.hf_encoder import ENCODERS, encoder_config_from_hf, is_encoder
from pagemill.checkpoint.hf_heads import decoder_name, head_of, labels
from pagemill.checkpoint.hf_rope import Rope, read_gemma3_rope, read_rope
from pagemill.config.model import ModelConfig, RopeConfig
from pagemill.errors import ModelLoadError

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class _Attention:
    """Which layers slide, and by how much."""

    window: int = 0
    layer_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Family:
    """What differs between the architectures: defaults of absent keys and their meaning."""

    attention: Callable[[Fields, int], _Attention]
    rope: Callable[[Fields], tuple[Rope, RopeConfig | None]] = lambda f: (read_rope(f), None)
    tie_embeddings: bool = False
    max_position: int = 2048
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    attention_bias: bool | None = False  # None: decided by the key attention_bias
    output_bias: bool = False  # whether attention_bias covers o_proj too
    activation_key: str = "hidden_act"
    activation: str = "silu"
    query_scalar: float = 0.0  # 0: head_dim


def model_config_from_hf(raw: Mapping[str, Any], origin: str = "config.json") -> ModelConfig:
    """Translate the content of a config.json. `origin` is named in errors (ModelLoadError)."""
    if is_encoder(raw):
        return encoder_config_from_hf(raw, origin)
    architecture, fields = _text_part(raw, origin)
    family = _FAMILIES[decoder_name(architecture)]
    num_layers = fields.size("num_hidden_layers")
    num_heads = fields.size("num_attention_heads")
    hidden_size = fields.size("hidden_size")
    head_dim = fields.size("head_dim", family.head_dim or hidden_size // num_heads or 1)
    attention = family.attention(fields, num_layers)
    rope, local_rope = family.rope(fields)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.size("num_key_value_heads", num_heads),
        head_dim=head_dim,
        max_position=rope.max_position(fields.size("max_position_embeddings", family.max_position)),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope.config,
        local_rope=local_rope,
        activation=_activation(fields, family),
        tie_embeddings=fields.flag("tie_word_embeddings", family.tie_embeddings),
        attention_bias=_attention_bias(fields, family),
        output_bias=family.output_bias and fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        sliding_window=attention.window,
        layer_types=attention.layer_types,
        query_scale=_query_scale(fields, family),
        attention_soft_cap=fields.number("attn_logit_softcapping", 0.0),
        logit_soft_cap=fields.number("final_logit_softcapping", 0.0),
        dtype=checkpoint_dtype(fields),
        bos_token_id=first_id(fields.get("bos_token_id")),
        eos_token_ids=token_ids(fields.get("eos_token_id")),
        pad_token_id=first_id(fields.get("pad_token_id")),
        quantization=fields.mapping("quantization_config"),
        head=head_of(architecture),
        labels=labels(fields) if head_of(architecture) == "classifier" else (),
        raw=dict(raw),
    )
    _check_heads(config, origin)
    return config


def supported_architectures() -> list[str]:
    return [*sorted(_FAMILIES), *sorted(ENCODERS)]


def token_ids(value: Any) -> tuple[int, ...]:
    """A token id, a list of them or None, as config files write `eos_token_id`."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool))


def first_id(value: Any) -> int | None:
    return next(iter(token_ids(value)), None)


def merge_eos_ids(
    config: ModelConfig, generation_config: Mapping[str, Any], tokenizer_id: int | None = None
) -> tuple[int, ...]:
    """All token ids that end a generation: the model's own, then those of its other files."""
    ids = (*config.eos_token_ids, *token_ids(generation_config.get("eos_token_id")), tokenizer_id)
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _text_part(raw: Mapping[str, Any], origin: str) -> tuple[str, Fields]:
    named = raw.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if architecture == "Gemma3ForConditionalGeneration":  # served as text only
        text = raw.get("text_config")
        if not isinstance(text, Mapping):
            raise ModelLoadError(f"{origin}: {architecture} without a text_config")
        tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
        ids = {k: raw[k] for k in ("eos_token_id", "bos_token_id") if k in raw and k not in text}
        merged = {**_GEMMA3_TEXT_DEFAULTS, **ids, **text, "tie_word_embeddings": tied}
        return "Gemma3ForCausalLM", Fields(merged, origin)
    if not isinstance(architecture, str) or decoder_name(architecture) not in _FAMILIES:
        raise ModelLoadError(
            f"{origin}: architecture {architecture!r} is not supported; "
            f"supported are {', '.join(supported_architectures())}"
        )
    return architecture, Fields(raw, origin)


# What Gemma 3's multimodal configs leave out because the published class had it as a default.
_GEMMA3_TEXT_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}


def _activation(fields: Fields, family: _Family) -> str:
    value = fields.get(family.activation_key) or fields.get("hidden_act") or family.activation
    if value not in {"silu", "gelu", "gelu_pytorch_tanh"}:
        raise fields.error(f"activation {value!r} is not supported; supported are silu and gelu")
    return str(value)


def _attention_bias(fields: Fields, family: _Family) -> bool:
    if family.attention_bias is None:
        return fields.flag("attention_bias", False)
    return family.attention_bias


def _query_scale(fields: Fields, family: _Family) -> float:
    scalar = fields.number("query_pre_attn_scalar", family.query_scalar)
    return scalar**-0.5 if scalar > 0 else 0.0


def _check_heads(config: ModelConfig, origin: str) -> None:
    if config.num_heads % config.num_kv_heads:
        raise ModelLoadError(
            f"{origin}: num_attention_heads {config.num_heads} is not a multiple of "
            f"num_key_value_heads {config.num_kv_heads}"
        )
    if config.head_dim % 2:
        raise ModelLoadError(f"{origin}: head_dim {config.head_dim} is odd; rotation needs pairs")
    if config.layer_types and len(config.layer_types) != config.num_layers:
        raise ModelLoadError(
            f"{origin}: layer_types has {len(config.layer_types)} entries "
            f"for {config.num_layers} layers"
        )


def _full_attention(fields: Fields, num_layers: int) -> _Attention:
    return _Attention()


def _mistral_attention(fields: Fields, num_layers: int) -> _Attention:
    """Every layer slides when a window is given (Mistral 7B v0.1)."""
    window = fields.count("sliding_window")
    listed = _listed_types(fields)
    return _Attention(window, listed or (SLIDING,) * num_layers) if window else _Attention()


def _qwen_attention(fields: Fields, num_layers: int) -> _Attention:
    """With `use_sliding_window`, layers from `max_window_layers` on slide."""
    window = fields.count("sliding_window", 4096)
    if not fields.flag("use_sliding_window", False) or not window:
        return _Attention()
    first = fields.count("max_window_layers", 28)
    by_index = tuple(SLIDING if i >= first else FULL for i in range(num_layers))
    return _Attention(window, _listed_types(fields) or by_index)


def _gemma3_attention(fields: Fields, num_layers: int) -> _Attention:
    """Every sixth layer (`sliding_window_pattern`) is full, the others slide."""
    if fields.flag("use_bidirectional_attention", False):
        raise fields.error("bidirectional attention is not supported")
    window = fields.count("sliding_window", 4096)
    period = fields.size("sliding_window_pattern", 6)
    by_index = tuple(SLIDING if (i + 1) % period else FULL for i in range(num_layers))
    return _Attention(window, _listed_types(fields) or by_index) if window else _Attention()


def _listed_types(fields: Fields) -> tuple[str, ...]:
    listed = fields.get("layer_types") or ()
    unknown = next((kind for kind in listed if kind not in (FULL, SLIDING)), None)
    if unknown is not None:
        raise fields.error(f"layer type {unknown!r} is not supported")
    return tuple(listed)


_FAMILIES = {
    "LlamaForCausalLM": _Family(_full_attention, attention_bias=None, output_bias=True),
    "MistralForCausalLM": _Family(_mistral_attention, max_position=131_072),
    "Qwen2ForCausalLM": _Family(_qwen_attention, max_position=32_768, attention_bias=True),
    "Qwen3ForCausalLM": _Family(
        _qwen_attention, max_position=32_768, head_dim=128, attention_bias=None, output_bias=True
    ),
    "Gemma3ForCausalLM": _Family(
        _gemma3_attention,
        rope=read_gemma3_rope,
        tie_embeddings=True,
        max_position=131_072,
        head_dim=256,
        attention_bias=None,
        output_bias=True,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        query_scalar=256.0,
    ),
}
