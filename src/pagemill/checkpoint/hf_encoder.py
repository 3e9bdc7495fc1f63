"""config.json of BERT, RoBERTa and XLM-R -> ModelConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagemill.checkpoint.fields import Fields, checkpoint_dtype
from pagemill.checkpoint.hf_heads import head_of, labels
from pagemill.config.model import EncoderConfig, Head, ModelConfig, RopeConfig

_ROBERTA = ("Roberta", "XLMRoberta", "Camembert")
_ENDS = ("Model", "ForMaskedLM", "ForSequenceClassification")
ENCODERS = tuple(f"{family}{end}" for family in ("Bert", *_ROBERTA) for end in _ENDS)


def is_encoder(raw: Mapping[str, Any]) -> bool:
    """Whether the config is one of these families'."""
    named = raw.get("architectures")
    return isinstance(named, list) and bool(named) and named[0] in ENCODERS


def encoder_config_from_hf(raw: Mapping[str, Any], origin: str) -> ModelConfig:
    """Raises ModelLoadError naming the key at fault."""
    architecture: str = raw["architectures"][0]
    fields = Fields(raw, origin)
    _check(fields)
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if hidden_size % num_heads:
        raise fields.error(f"hidden_size {hidden_size} is not a multiple of {num_heads} heads")
    encoder = _encoder(architecture, fields)
    if encoder.num_positions <= encoder.position_offset:
        raise fields.error("max_position_embeddings leaves no position for a token")
    head: Head = "classifier" if head_of(architecture) == "classifier" else "none"
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position=encoder.num_positions - encoder.position_offset,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        rope=RopeConfig(),
        activation=str(fields.get("hidden_act") or "gelu"),
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        dtype=checkpoint_dtype(fields, "float32"),
        head=head,
        labels=labels(fields) if head == "classifier" else (),
        encoder=encoder,
        raw=dict(raw),
    )


def _encoder(architecture: str, fields: Fields) -> EncoderConfig:
    """RoBERTa's positions begin behind that of the padding token."""
    roberta = architecture.startswith(_ROBERTA)
    offset = fields.count("pad_token_id", 1) + 1 if roberta else 0
    return EncoderConfig(
        num_positions=fields.size("max_position_embeddings", 512),
        position_offset=offset,
        num_token_types=fields.size("type_vocab_size", 2),
        roberta_head=roberta,
    )


def _check(fields: Fields) -> None:
    kind = fields.get("position_embedding_type")
    if kind not in (None, "absolute"):
        raise fields.error(f"position_embedding_type {kind!r} is not supported, only absolute")
    if fields.flag("is_decoder", False):
        raise fields.error("is_decoder is not supported for this architecture")
