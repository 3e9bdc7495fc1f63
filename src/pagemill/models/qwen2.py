"""Qwen2 and Qwen2.5: Llama's layers with biases on q, k and v, and windows on upper layers."""

from __future__ import annotations

from dataclasses import replace

from pagemill.config.model import ModelConfig
from pagemill.layers.base import BuildContext
from pagemill.models.causal_lm import CausalLM
from pagemill.models.llama import LlamaLayer


def build(config: ModelConfig, ctx: BuildContext) -> CausalLM:
    return CausalLM(replace(config, attention_bias=True), ctx, LlamaLayer)
