"""Files read by threads give what the mapped file gives, within the memory that is allowed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pagemill.checkpoint import read_ahead as module
from pagemill.checkpoint.read_ahead import read_ahead
from pagemill.errors import ModelLoadError


def plain(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def files_of(folder: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(700, 33, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "float8": torch.randn(9, 5, generator=generator).to(torch.float8_e4m3fn),
        "ids": torch.arange(1000),
    }
    paths = [folder / "a.safetensors", folder / "b.safetensors"]
    save_file(tensors, paths[0])
    save_file({"other": torch.randn(50, 7, generator=generator)}, paths[1])
    return paths


@pytest.mark.parametrize("window", [1, 10_000, 1 << 30])
def test_every_tensor_arrives_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 1000)
    monkeypatch.setattr(module, "WINDOW_BYTES", window)
    files = files_of(tmp_path)
    expected = load_file(files[0]) | load_file(files[1])
    found = list(read_ahead(files, plain))
    assert {name for _, name, _ in found} == set(expected) and len(found) == len(expected)
    assert [path for path, _, _ in found] == sorted(path for path, _, _ in found)
    for _, name, tensor in found:
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor.float(), expected[name].float())


def test_no_more_is_read_ahead_than_the_window_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_BYTES", 2500)
    path = tmp_path / "m.safetensors"
    save_file({f"t{i}": torch.full((250,), float(i)) for i in range(8)}, path)
    asked = 0

    def counted(num_bytes: int) -> Tensor:
        nonlocal asked
        asked += num_bytes
        return plain(num_bytes)

    for taken, (_, name, tensor) in enumerate(read_ahead([path], counted), start=1):
        assert asked <= 1000 * taken + 2500
        assert tensor.unique().tolist() == [float(name[1:])]


def test_taking_only_some_ends_the_threads(tmp_path: Path) -> None:
    tensors = read_ahead(files_of(tmp_path), plain)
    next(tensors)
    tensors.close()  # type: ignore[attr-defined]


def damaged(path: Path, entry: str, data: bytes) -> Path:
    header = f'{{"t": {entry}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ('{"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}', "unknown type F4"),
        ('{"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}', "8 bytes does not hold F32"),
        ('{"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}', "no type or shape"),
        ('{"dtype": "F32", "shape": [2], "data_offsets": [0, 99]}', "truncated"),
    ],
)
def test_damage_is_named(tmp_path: Path, entry: str, named: str) -> None:
    path = damaged(tmp_path / "m.safetensors", entry, bytes(8))
    with pytest.raises(ModelLoadError, match=named):
        list(read_ahead([path], plain))
