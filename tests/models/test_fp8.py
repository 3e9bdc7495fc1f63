"""Float8 checkpoints: their numbers are kept, or dequantised where there are no float8 products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.harness import ModelHarness, build_context
from models.test_loading import CONFIG, random_weights
from pagemill.attention.torch_sdpa import TorchAttention
from pagemill.checkpoint.scaled import ScaledWeight, join_scales
from pagemill.config.model import ModelConfig
from pagemill.errors import ModelLoadError
from pagemill.models.causal_lm import CausalLM
from pagemill.models.loader import load_model
from pagemill.ops.reference import ReferenceOps
from pagemill.quant.fp8 import Fp8, quantize

TEXT = [5, 9, 2, 33, 12, 7, 49, 1]
BLOCKED = replace(
    CONFIG, hidden_size=160, intermediate_size=288, num_heads=4, num_kv_heads=4, head_dim=40
)
Stored = dict[str, Tensor]


def per_tensor(name: str, plain: Tensor) -> Stored:
    scale = plain.abs().max() / 448
    values = (plain / scale).to(torch.float8_e4m3fn)
    stem = name.removesuffix(".weight")
    return {
        f"{stem}.weight_scale": scale,
        name: values,
        f"{stem}.input_scale": torch.tensor(0.02),
    }


def per_row(name: str, plain: Tensor) -> Stored:
    values, scale = quantize(plain, 1)
    return {name: values, f"{name}_scale": scale.to(torch.bfloat16)}


def per_block(name: str, plain: Tensor) -> Stored:
    rows, columns = (-(-size // 128) for size in plain.shape)
    scale = torch.rand(rows, columns) + 0.5
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    values = (plain / spread[: plain.shape[0], : plain.shape[1]]).to(torch.float8_e4m3fn)
    return {f"{name}_scale_inv": scale, name: values}


def stored_model(config: ModelConfig, store: Callable[[str, Tensor], Stored]) -> Stored:
    """Every matrix of the layers in float8; head, embedding and norms as they are."""
    stored: Stored = {}
    for name, plain in random_weights(config).items():
        in_layer = name.endswith("proj.weight")
        stored |= store(name, 0.2 * plain) if in_layer else {name: plain}
    return stored


def logits(model: CausalLM) -> Tensor:
    return ModelHarness(model, TorchAttention()).chunked(TEXT, 3)


KINDS = [
    (CONFIG, per_tensor, {"quant_method": "fp8"}, False),
    (CONFIG, per_row, {"quant_method": "compressed-tensors"}, False),
    (BLOCKED, per_block, {"quant_method": "fp8", "weight_block_size": [128, 128]}, True),
]


@pytest.mark.parametrize(("config", "store", "quantization", "grouped"), KINDS)
def test_numbers_of_the_checkpoint_are_kept(
    config: ModelConfig, store: Callable[[str, Tensor], Stored], quantization: dict, grouped: bool
) -> None:
    if quantization["quant_method"] == "compressed-tensors":
        group = {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}
        quantization |= {"config_groups": {"all": group}}
    config = replace(config, quantization=quantization)
    stored = stored_model(config, store)
    context, ops = build_context(), ReferenceOps()
    context = replace(context, quant=Fp8(ops, ops, grouped=grouped, every_layer=True))
    model = load_model(config, context, iter(stored.items()))
    q, k, v = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv")
    merged = torch.cat([stored[name].float() for name in (q, k, v)])
    assert torch.equal(model.model.layers[1].self_attn.qkv_proj.weight.float(), merged)

    plain = load_model(config, build_context(), iter(stored.items()))
    assert plain.model.layers[1].self_attn.qkv_proj.weight.dtype == torch.float32
    expected = logits(plain)  # without the rounding of activations
    assert (logits(model) - expected).norm() < 0.12 * expected.norm()
    assert (logits(model) - expected).norm() > 0


def test_plain_weights_are_rounded_row_by_row_but_for_the_ends() -> None:
    config = replace(CONFIG, num_layers=3)
    weights = {name: 0.3 * tensor for name, tensor in random_weights(config).items()}
    ops = ReferenceOps()
    context = replace(build_context(), quant=Fp8(ops, ops))
    model = load_model(config, context, iter(weights.items()))
    layer = model.model.layers[1].mlp.down_proj
    plain = weights["model.layers.1.mlp.down_proj.weight"]
    error = (layer.weight.float() * layer.scale - plain).abs() / plain.abs().amax(1, keepdim=True)
    assert error.max() <= 1 / 28  # half a step of three bits, at the top of a row
    unrounded = [model.lm_head, model.model.layers[0].mlp.down_proj]
    unrounded.append(model.model.layers[2].self_attn.qkv_proj)
    assert {held.weight.dtype for held in unrounded} == {torch.float32}
    expected = logits(load_model(config, build_context(), iter(weights.items())))
    assert (logits(model) - expected).norm() < 0.12 * expected.norm()


def test_a_float8_cache_rounds_keys_and_values_only() -> None:
    weights = {name: 0.3 * tensor for name, tensor in random_weights().items()}
    model = load_model(CONFIG, build_context(), iter(weights.items()))
    expected = logits(model)
    small = ModelHarness(model, TorchAttention(), dtype=torch.float8_e4m3fn).chunked(TEXT, 3)
    assert 0 < (small - expected).norm() < 0.1 * expected.norm()


def test_scales_of_blocks_reach_every_element() -> None:
    plain = torch.randn(200, 300)
    stored = per_block("layer.weight", plain)
    ((name, joined),) = join_scales(iter(stored.items()))
    assert name == "layer.weight" and isinstance(joined, ScaledWeight)
    scale = stored["layer.weight_scale_inv"]
    rows, columns = torch.arange(200) // 128, torch.arange(300) // 128
    expected = stored["layer.weight"].float() * scale[rows][:, columns]
    assert torch.equal(joined.dequantize(), expected)


def values() -> Tensor:
    return torch.zeros(4, 6).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({"a.weight": values()}, "no scale for a.weight"),
        ({"a.weight_scale": torch.ones(1)}, "no float8 values for a.weight"),
        ({"a.weight": values(), "a.weight_scale": torch.ones(3)}, r"shape \[3\].* 4 x 6"),
    ],
)
def test_what_does_not_fit_is_named(stored: Stored, named: str) -> None:
    def pairs() -> Iterator[tuple[str, Tensor]]:
        yield from stored.items()

    with pytest.raises(ModelLoadError, match=named):
        list(join_scales(pairs()))
