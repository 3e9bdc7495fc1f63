"""GGUF files: values, layouts, and every way of being damaged."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagemill.checkpoint.gguf import GGUFFile
from pagemill.checkpoint.gguf_checkpoint import GGUFCheckpoint
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.tokenizer_spec import load_tokenizer_info
from pagemill.errors import ModelLoadError
from unit.checkpoint.gguf_writer import gguf_bytes, metadata, tensors

WHOLE = gguf_bytes(metadata(), tensors())
HEADER = len(gguf_bytes(metadata(), {}))


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_reads_metadata_and_tensors(tmp_path: Path, version: int) -> None:
    nested = [["a", "é"], ["b"]]
    given_tensors = tensors()
    path = write(tmp_path, gguf_bytes(metadata(nested=nested), given_tensors, version=version))
    file = GGUFFile(path)
    assert file.version == version
    assert file.metadata["nested"] == nested
    assert file.metadata["llama.rope.freq_base"] == 50000.0
    assert file.metadata["tokenizer.ggml.token_type"].tolist() == [3, 3, 1, 1, 1, 1]
    assert list(file.tensors) == list(given_tensors)
    for name, expected in given_tensors.items():
        np.testing.assert_array_equal(file.dequantize(file.tensors[name]), expected)


def test_a_larger_alignment_is_honoured(tmp_path: Path) -> None:
    content = gguf_bytes({"general.alignment": 64}, {"t": np.arange(8)})
    head = content[:-32]
    padded = head + b"\0" * (-len(head) % 64) + content[-32:]
    file = GGUFFile(write(tmp_path, padded))
    assert file.dequantize(file.tensors["t"]).tolist() == list(range(8))


def use_everything(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, GGUFCheckpoint)
    checkpoint.model_config()
    checkpoint.weight_bytes()
    checkpoint.chat_template()
    load_tokenizer_info(checkpoint)
    for tensor in checkpoint.file.tensors.values():
        checkpoint.file.dequantize(tensor)


def test_a_whole_file_can_be_used(tmp_path: Path) -> None:
    use_everything(write(tmp_path, WHOLE))


@pytest.mark.parametrize("kept", [0, 3, 4, 23, 24, 30, 100, HEADER - 1, HEADER, len(WHOLE) - 1])
def test_a_truncated_file_is_named_so(tmp_path: Path, kept: int) -> None:
    with pytest.raises(ModelLoadError, match=r"truncated|empty|download it again") as caught:
        use_everything(write(tmp_path, WHOLE[:kept]))
    assert "\n" not in str(caught.value)


def test_truncation_anywhere_is_a_load_error(tmp_path: Path) -> None:
    for kept in [*range(0, 2200, 3), *range(2200, len(WHOLE), 997)]:
        with pytest.raises(ModelLoadError):
            use_everything(write(tmp_path, WHOLE[:kept]))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_anywhere_is_a_load_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 2600))
        junk = data.draw(
            st.sampled_from([b"\0", b"\xff", b"\xff" * 8, b"\x7f", b"\x09\0\0\0", b"\x08\0\0\0"])
            | st.binary(min_size=1, max_size=8)
        )
        content[at : at + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    try:
        use_everything(path)
    except ModelLoadError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + WHOLE[4:], "does not begin with GGUF"),
        (WHOLE[:4] + struct.pack("<I", 1) + WHOLE[8:], "version 1 is not supported"),
        (WHOLE[:4] + struct.pack(">I", 3) + WHOLE[8:], "big-endian"),
        (WHOLE[:8] + struct.pack("<Q", 2**60) + WHOLE[16:], "announces"),
        (WHOLE[:16] + struct.pack("<Q", 2**60) + WHOLE[24:], "announces"),
        (gguf_bytes(metadata(split__count=3), tensors()), "one of 3 parts"),
        (gguf_bytes(metadata(), tensors(), types={"output_norm.weight": 16}), "IQ2_XXS"),
        (gguf_bytes(metadata(), tensors(), types={"output_norm.weight": 99}), "number 99"),
        (gguf_bytes(metadata(), {"t": np.zeros(33)}, types={"t": 8}), "multiple of a block"),
        (gguf_bytes({"general.alignment": 0}, {"t": np.zeros(8)}), "alignment"),
        (gguf_bytes({"x": [[[[[1]]]]]}, {}), "nested too deep"),
        (gguf_bytes(metadata("phi3"), tensors()), "'phi3' is not supported; supported are llama"),
        (gguf_bytes(metadata(llama__expert_count=8), tensors()), "mixture-of-experts"),
        (gguf_bytes(metadata(llama__block_count="2"), tensors()), "block_count is missing"),
        (gguf_bytes(metadata(), {}), "token_embd.weight is missing"),
        (gguf_bytes(metadata(tokenizer__ggml__pre="zzz"), tensors()), "pre-tokenizer 'zzz'"),
        (gguf_bytes(metadata(tokenizer__ggml__model="bert"), tensors()), "model 'bert'"),
        (gguf_bytes(metadata(tokenizer__ggml__merges=["a z"]), tensors()), "merge 'a z'"),
        (gguf_bytes(metadata(tokenizer__ggml__tokens=["a"]), tensors()), "token types"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        use_everything(write(tmp_path, content))
    assert message in str(caught.value)


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such model folder"):
        open_checkpoint(tmp_path / "none.gguf")


def config_of(tmp_path: Path, architecture: str, **extra: Any) -> Any:
    given_tensors = tensors(architecture)
    if "rope_freqs" in extra:
        given_tensors["rope_freqs.weight"] = extra.pop("rope_freqs")
    content = gguf_bytes(metadata(architecture, **extra), given_tensors)
    return open_checkpoint(write(tmp_path, content)).model_config()


def test_llama_config(tmp_path: Path) -> None:
    config = config_of(tmp_path, "llama", tokenizer__ggml__eot_token_id=4)
    assert config.architecture == "LlamaForCausalLM"
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (6, 32, 64)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.head_dim, config.max_position) == (8, 64)
    assert config.rope.theta == 50000.0
    assert config.norm_eps == pytest.approx(1e-5)
    assert config.tie_embeddings
    assert not config.attention_bias
    assert config.eos_token_ids == (1, 4)
    assert config.bos_token_id == 0


def test_qwen_configs(tmp_path: Path) -> None:
    assert config_of(tmp_path, "qwen2").attention_bias
    config = config_of(tmp_path, "qwen3", qwen3__attention__key_length=16)
    assert (config.architecture, config.head_dim) == ("Qwen3ForCausalLM", 16)
    assert not config.attention_bias


def test_gemma3_config(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        "gemma3",
        gemma3__attention__key_length=8,
        gemma3__attention__sliding_window=16,
        gemma3__rope__scaling__type="linear",
        gemma3__rope__scaling__factor=8.0,
    )
    assert config.layer_window(0) == 16
    assert config.attention_scale == pytest.approx(8**-0.5)
    assert (config.rope.kind, config.rope.params) == ("linear", {"factor": 8.0})
    assert config.local_rope is not None
    assert (config.local_rope.kind, config.local_rope.theta) == ("default", 10000.0)
    assert config.activation == "gelu_pytorch_tanh"


def test_rope_scaling(tmp_path: Path) -> None:
    scaling = {
        "llama__rope__scaling__type": "yarn",
        "llama__rope__scaling__factor": 4.0,
        "llama__rope__scaling__original_context_length": 32,
    }
    config = config_of(tmp_path, "llama", **scaling)
    assert config.max_position == 128
    assert config.rope.params == {"factor": 4.0, "original_max_position_embeddings": 32}
    factors = np.array([1, 1, 4, 8], np.float32)
    config = config_of(tmp_path, "llama", rope_freqs=factors)
    assert config.rope.kind == "llama3_factors"
    assert config.rope.params == {"factors": [1.0, 1.0, 4.0, 8.0]}
    with pytest.raises(ModelLoadError, match="impossible factors"):
        config_of(tmp_path, "llama", rope_freqs=np.array([1, 0], np.float32))


def test_chat_templates(tmp_path: Path) -> None:
    def template(**extra: Any) -> Any:
        content = gguf_bytes(metadata(**extra), tensors())
        return open_checkpoint(write(tmp_path, content)).chat_template()

    assert template() is None
    assert template(tokenizer__chat_template="x") == "x"
    both = template(tokenizer__chat_template="x", tokenizer__chat_template__tool_use="y")
    assert both == {"default": "x", "tool_use": "y"}
