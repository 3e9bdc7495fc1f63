"""The model shapes that are measured."""

from __future__ import annotations

from dataclasses import dataclass

from pagemill.attention.base import AttentionSpec
from pagemill.ops.base import HeadShape


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's sizes."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: HeadShape
    vocab: int
    qk_norm: bool

    @property
    def qkv_size(self) -> int:
        return self.heads.q_size + 2 * self.heads.kv_size

    def spec(self, layer: int = 0) -> AttentionSpec:
        heads = self.heads
        scale = heads.head_dim**-0.5
        return AttentionSpec(layer, heads.num_heads, heads.num_kv_heads, heads.head_dim, scale)


QWEN3_06B = ModelShape("0.6b", 28, 1024, 3072, HeadShape(16, 8, 128), 151_936, True)
LLAMA_8B = ModelShape("8b", 32, 4096, 14_336, HeadShape(32, 8, 128), 128_256, False)
SHAPES = (QWEN3_06B, LLAMA_8B)
