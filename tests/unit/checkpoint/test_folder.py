"""Model folders: what is found, and what their damage is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemill.checkpoint.folder import FolderCheckpoint
from pagemill.checkpoint.open import open_checkpoint
from pagemill.errors import ModelLoadError
from unit.checkpoint.checkpoint_files import safetensors_bytes, tiny_repo

ONES = np.ones(8, np.float32)


def folder(tmp_path: Path, files: dict[str, bytes | dict[str, Any]] | None = None) -> Path:
    for name, content in {**tiny_repo(), **(files or {})}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
    return tmp_path


def sharded(tmp_path: Path) -> Path:
    shards = {"model-1.safetensors": {"a": ONES}, "model-2.safetensors": {"b": ONES, "c": ONES}}
    weight_map = {name: file for file, held in shards.items() for name in held}
    path = folder(tmp_path, {"model.safetensors.index.json": {"weight_map": weight_map}})
    (path / "model.safetensors").unlink()
    for file, held in shards.items():
        (path / file).write_bytes(safetensors_bytes(held))
    return path


def test_config_and_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder(tmp_path))
    assert checkpoint.model_config().architecture == "LlamaForCausalLM"
    assert checkpoint.generation_config() == {}
    assert checkpoint.weight_bytes() == 32
    assert [file.name for file in checkpoint.weight_files()] == ["model.safetensors"]


def test_generation_config(tmp_path: Path) -> None:
    path = folder(tmp_path, {"generation_config.json": {"eos_token_id": [5]}})
    assert open_checkpoint(path).generation_config() == {"eos_token_id": [5]}


def test_shards(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    checkpoint = FolderCheckpoint(path)
    assert checkpoint.weight_bytes() == 96
    assert checkpoint.expected_tensors() == {"a", "b", "c"}
    (path / "model-2.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"lacks 1 of 2 weight files: model-2\.safetensors"):
        checkpoint.weight_bytes()


def test_an_index_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../secret.safetensors"}}
    path = folder(tmp_path, {"model.safetensors.index.json": index})
    with pytest.raises(ModelLoadError, match="same folder"):
        FolderCheckpoint(path).weight_files()


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_a_load_error(tmp_path: Path, index: bytes) -> None:
    path = folder(tmp_path, {"model.safetensors.index.json": index})
    with pytest.raises(ModelLoadError, match=r"index\.json"):
        FolderCheckpoint(path).weight_files()


def test_chat_templates(tmp_path: Path) -> None:
    path = folder(tmp_path)
    assert FolderCheckpoint(path).chat_template() == "{{ messages[0].content }}"
    extra = path / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text("T")
    named = FolderCheckpoint(path).chat_template()
    assert named == {"default": "{{ messages[0].content }}", "tool_use": "T"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", "x"),
        (None, None),
        ([{"name": "default", "template": "x"}], {"default": "x"}),
    ],
)
def test_chat_template_of_the_tokenizer_config(tmp_path: Path, value: Any, expected: Any) -> None:
    path = folder(tmp_path, {"tokenizer_config.json": {"chat_template": value}})
    (path / "chat_template.jinja").unlink()
    assert FolderCheckpoint(path).chat_template() == expected


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"neither a config\.json nor a \.gguf"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"x")
    assert open_checkpoint(tmp_path).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=r"name one of them: a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-1], "is truncated"),
        (lambda whole: whole[:20], "is truncated"),
        (lambda whole: whole[:5], "is truncated"),
        (lambda whole: b"", "is truncated"),
        (lambda whole: b"\xff" * 8 + whole[8:], "is truncated"),
        (lambda whole: whole[:8] + b"!" + whole[9:], "no JSON"),
        (lambda whole: b"\x02" + b"\0" * 7 + b"[]", "no JSON object"),
        (lambda whole: b"\x08" + b"\0" * 7 + b'{"a": 1}', "tensor a has no place"),
    ],
)
def test_damaged_weights_are_a_load_error(tmp_path: Path, damage: Any, message: str) -> None:
    path = folder(tmp_path, {"model.safetensors": damage(safetensors_bytes({"a": ONES}))})
    with pytest.raises(ModelLoadError) as caught:
        FolderCheckpoint(path).weight_bytes()
    assert message in str(caught.value)
    assert "download it again" in str(caught.value)


def test_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="pickled weights"):
        FolderCheckpoint(path).weight_files()
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelLoadError, match="is the download complete"):
        FolderCheckpoint(path).weight_files()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_config_is_a_load_error(tmp_path: Path, content: bytes) -> None:
    path = folder(tmp_path, {"config.json": content})
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        open_checkpoint(path).model_config()
