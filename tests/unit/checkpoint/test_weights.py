"""Weights under their Hugging Face names and layouts, from both formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.weights import iterate_weights
from pagemill.errors import ModelLoadError
from unit.checkpoint.checkpoint_files import LLAMA_CONFIG, safetensors_bytes
from unit.checkpoint.gguf_writer import gguf_bytes, metadata, tensors


def load_gguf(tmp_path: Path, architecture: str) -> dict[str, torch.Tensor]:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(metadata(architecture), tensors(architecture)))
    return dict(iterate_weights(open_checkpoint(path)))


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What converters do to llama's q and k: x0 x1 .. y0 y1 .. -> x0 y0 x1 y1 .."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def test_llama_rows_are_put_back_in_order(tmp_path: Path) -> None:
    plain = tensors()
    stored = dict(plain)
    for layer in range(2):
        for part, heads in (("attn_q", 4), ("attn_k", 2)):
            name = f"blk.{layer}.{part}.weight"
            stored[name] = interleave(plain[name], heads)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(metadata(), stored | {"rope_freqs.weight": np.ones(4)}))
    told: list[tuple[int, int]] = []
    checkpoint = open_checkpoint(path)
    progress = iterate_weights(checkpoint, progress=lambda *done: told.append(done))
    loaded = dict(progress)
    assert len(loaded) == len(plain)
    for ours, theirs in {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }.items():
        np.testing.assert_array_equal(
            loaded[f"model.layers.1.{ours}.weight"], plain[f"blk.1.{theirs}.weight"]
        )
    total = checkpoint.weight_bytes()
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {whole for _, whole in told} == {total}
    assert told[-1][0] <= total


@pytest.mark.parametrize(
    ("architecture", "auto_class"), [("qwen2", "Qwen2"), ("qwen3", "Qwen3"), ("gemma3", "Gemma3")]
)
def test_names_are_those_of_transformers(
    tmp_path: Path, architecture: str, auto_class: str
) -> None:
    import transformers

    suffix = "TextConfig" if architecture == "gemma3" else "Config"
    config = getattr(transformers, auto_class + suffix)(
        vocab_size=6,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    model = getattr(transformers, f"{auto_class}ForCausalLM")(config)
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    loaded = load_gguf(tmp_path, architecture)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == theirs


def test_gemma_norms_are_stored_plus_one(tmp_path: Path) -> None:
    loaded, stored = load_gguf(tmp_path, "gemma3"), tensors("gemma3")
    for ours, theirs in {
        "model.norm": "output_norm",
        "model.layers.0.self_attn.q_norm": "blk.0.attn_q_norm",
        "model.layers.1.post_feedforward_layernorm": "blk.1.post_ffw_norm",
    }.items():
        np.testing.assert_array_equal(loaded[f"{ours}.weight"], stored[f"{theirs}.weight"] - 1)
    qwen = load_gguf(tmp_path, "qwen3")
    np.testing.assert_array_equal(qwen["model.norm.weight"], tensors("qwen3")["output_norm.weight"])


def test_an_unknown_tensor_is_a_load_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for extra, message in [
        ({"blk.0.attn_q_norm.weight": np.ones(8)}, "attn_q_norm.weight is unknown"),
        ({"blk.0.attn_q.weight": np.ones((30, 32))}, "does not fit 4 heads"),
    ]:
        path.write_bytes(gguf_bytes(metadata(), tensors() | extra))
        with pytest.raises(ModelLoadError) as caught:
            list(iterate_weights(open_checkpoint(path)))
        assert message in str(caught.value)


def write_folder(path: Path, files: dict[str, dict[str, np.ndarray]]) -> None:
    (path / "config.json").write_text(json.dumps(LLAMA_CONFIG))
    for name, held in files.items():
        (path / name).write_bytes(safetensors_bytes(held))


def test_safetensors_keep_their_type(tmp_path: Path) -> None:
    values = np.arange(1 << 16, dtype=np.float16)
    write_folder(tmp_path, {"model.safetensors": {"a": values, "b": values + 1}})
    told: list[tuple[int, int]] = []
    checkpoint = open_checkpoint(tmp_path)
    loaded = dict(iterate_weights(checkpoint, progress=lambda *done: told.append(done)))
    assert loaded["a"].dtype == torch.float16
    np.testing.assert_array_equal(loaded["b"], values + 1)
    assert told == [(1 << 17, 1 << 18), (1 << 18, 1 << 18)]


def test_shards_are_read_in_turn_and_must_be_complete(tmp_path: Path) -> None:
    one = np.ones(2, np.float32)
    shards = {"model-1.safetensors": {"a": one}, "model-2.safetensors": {"b": one}}
    write_folder(tmp_path, shards)
    index = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert [name for name, _ in iterate_weights(open_checkpoint(tmp_path))] == ["a", "b"]
    path.write_text(json.dumps({"weight_map": {**index, "c": "model-2.safetensors"}}))
    with pytest.raises(ModelLoadError, match=r"1 tensors of the index are in no file.* c;"):
        list(iterate_weights(open_checkpoint(tmp_path)))


def test_multimodal_files_give_their_text_part(tmp_path: Path) -> None:
    one = np.ones(2, np.float32)
    names = [
        "language_model.model.norm.weight",
        "model.language_model.layers.0.x",
        "vision_tower.a",
        "model.vision_tower.a",
        "multi_modal_projector.b",
        "lm_head.weight",
    ]
    write_folder(tmp_path, {"model.safetensors": dict.fromkeys(names, one)})
    loaded = {name for name, _ in iterate_weights(open_checkpoint(tmp_path))}
    assert loaded == {"model.norm.weight", "model.layers.0.x", "lm_head.weight"}


def test_safetensors_of_an_unknown_type_are_a_load_error(tmp_path: Path) -> None:
    write_folder(tmp_path, {"model.safetensors": {"a": np.ones(2, np.float32)}})
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"Q99"'))
    with pytest.raises(ModelLoadError, match="not a usable safetensors file") as caught:
        list(iterate_weights(open_checkpoint(tmp_path)))
    assert "\n" not in str(caught.value)
