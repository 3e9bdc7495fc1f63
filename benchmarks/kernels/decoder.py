"""Whole decode steps in one CUDA graph: what one caller, and a full batch, would see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from attention import make_batch
from shapes import LLAMA_8B, QWEN3_06B, ModelShape
from timing import Limits, Result, graph_time, relative_error
from torch import Tensor

from pagemill.attention.base import ForwardBatch
from pagemill.attention.triton import TritonAttention
from pagemill.ops.base import Ops
from pagemill.ops.fused import FusedOps
from pagemill.ops.reference import ReferenceOps
from pagemill.ops.triton.ops import TritonOps
from pagemill.ops.triton.split_attention import RopeInput

EPS = 1e-6


@dataclass(slots=True)
class Layer:
    """One layer's weights."""

    input_norm: Tensor
    qkv: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor

    def num_bytes(self) -> int:
        return 2 * sum(w.numel() for w in (self.qkv, self.out, self.gate_up, self.down))


class CublasOps(TritonOps):
    """The same kernels around, but every product by cuBLAS."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)


def _matrix(rows: int, cols: int) -> Tensor:
    return torch.empty(rows, cols, device="cuda", dtype=torch.bfloat16).normal_(std=cols**-0.5)


def _norm_weight(size: int) -> Tensor:
    return torch.rand(size, device="cuda") + 0.5


def _layer(shape: ModelShape) -> Layer:
    heads = shape.heads
    head_norms = [_norm_weight(heads.head_dim) if shape.qk_norm else None for _ in "qk"]
    return Layer(
        _norm_weight(shape.hidden),
        _matrix(shape.qkv_size, shape.hidden),
        *head_norms,
        _matrix(shape.hidden, heads.q_size),
        _norm_weight(shape.hidden),
        _matrix(2 * shape.intermediate, shape.hidden),
        _matrix(shape.hidden, shape.intermediate),
    )


@dataclass(slots=True)
class Decoder:
    """A model's decode step, from the embedded token to the next token's id."""

    shape: ModelShape
    layers: list[Layer]
    final_norm: Tensor
    lm_head: Tensor
    cos_sin: Tensor
    attention: TritonAttention

    def plain(self, ops: Ops, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """One kernel per op; returns logits."""
        residual = torch.zeros_like(hidden)
        for index, layer in enumerate(self.layers):
            cache = batch.kv_cache[index]
            hidden = ops.add_rms_norm(hidden, residual, layer.input_norm, EPS)
            q = ops.qk_norm_rope_cache(
                ops.linear(hidden, layer.qkv, None), batch.positions, batch.slot_mapping,
                self.cos_sin, self.shape.heads, cache.k, cache.v, layer.q_norm, layer.k_norm, EPS,
            )  # fmt: skip
            hidden = self.attention.run(self.shape.spec(index), q, batch)
            hidden = ops.linear(hidden, layer.out, None)
            hidden = ops.add_rms_norm(hidden, residual, layer.post_norm, EPS)
            hidden = ops.silu_mul(ops.linear(hidden, layer.gate_up, None))
            hidden = ops.linear(hidden, layer.down, None)
        hidden = ops.add_rms_norm(hidden, residual, self.final_norm, EPS)
        return ops.linear(hidden, self.lm_head, None)

    def fused(self, ops: FusedOps, residual: Tensor, batch: ForwardBatch) -> Tensor:
        """Five kernels per layer; returns logits."""
        norms = [*(layer.input_norm for layer in self.layers[1:]), self.final_norm]
        stream = ops.begin_stream(residual.clone(), self.layers[0].input_norm)
        for index, (layer, next_norm) in enumerate(zip(self.layers, norms, strict=True)):
            rope = RopeInput(self.cos_sin, layer.q_norm, layer.k_norm, EPS)
            qkv = ops.norm_linear(stream, EPS, layer.qkv, None)
            hidden = self.attention.run_with_rope(self.shape.spec(index), qkv, batch, rope)
            ops.linear_add(hidden, layer.out, None, stream, layer.post_norm)
            hidden = ops.norm_gate_up(stream, EPS, layer.gate_up, "silu")
            ops.linear_add(hidden, layer.down, None, stream, next_norm)
        hidden = ops.rms_norm(stream.values, self.final_norm, EPS)
        return ops.linear(hidden, self.lm_head, None)


def make_decoder(shape: ModelShape) -> Decoder:
    return Decoder(
        shape,
        [_layer(shape) for _ in range(shape.layers)],
        _norm_weight(shape.hidden),
        _matrix(shape.vocab, shape.hidden),
        torch.randn(4096, shape.heads.head_dim, device="cuda"),
        TritonAttention(),
    )


def _results(shape: ModelShape, rows: int, seq_len: int, limits: Limits) -> Iterator[Result]:
    torch.cuda.empty_cache()
    decoder, ops, cublas = make_decoder(shape), TritonOps(), CublasOps()
    _, batches = make_batch(shape, [1] * rows, [seq_len] * rows, shape.layers)
    batch = replace(batches[0], kv_cache=[b.kv_cache[0] for b in batches])
    hidden = torch.randn(rows, shape.hidden, device="cuda", dtype=torch.bfloat16)
    num_bytes = sum(layer.num_bytes() for layer in decoder.layers) + decoder.lm_head.numel() * 2
    num_bytes += rows * seq_len * shape.heads.kv_size * 4 * shape.layers
    limit = num_bytes / limits.bandwidth * 1e6
    expected = decoder.plain(ReferenceOps(), hidden, batch)
    steps = [
        ("cuBLAS", lambda: decoder.plain(cublas, hidden, batch)),
        ("TritonOps", lambda: decoder.plain(ops, hidden, batch)),
    ]
    if ops.fuses(rows, shape.hidden, hidden.dtype):
        steps.append(("fused", lambda: decoder.fused(ops, hidden, batch)))
    for name, step in steps:
        error = relative_error(step(), expected)
        seconds = graph_time([lambda step=step: ops.argmax(step())])
        variant = f"{name}: {rows / seconds:.0f} tok/s"
        yield Result(f"{shape.name} step {rows} x {seq_len}", variant, seconds * 1e6, limit, error)


def decoder_results(limits: Limits) -> Iterator[Result]:
    for rows in (1, 8, 32, 64, 128, 256):
        yield from _results(QWEN3_06B, rows, 384, limits)
    for rows in (1, 8, 32, 64):
        yield from _results(LLAMA_8B, rows, 384, limits)
