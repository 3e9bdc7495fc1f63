"""Weights as torch tensors under their Hugging Face names, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pagemill.checkpoint.base import Checkpoint
from pagemill.checkpoint.folder import FolderCheckpoint
from pagemill.checkpoint.gguf import GGUFFile, GGUFTensor
from pagemill.checkpoint.gguf_checkpoint import GGUFCheckpoint
from pagemill.checkpoint.gguf_config import gguf_architecture
from pagemill.checkpoint.gguf_groups import read_groups
from pagemill.checkpoint.gguf_names import CONFIG_TENSORS, HFTensor, hf_tensor, to_hf_layout
from pagemill.checkpoint.groups import GroupedWeight
from pagemill.checkpoint.read_ahead import Allocate, read_ahead
from pagemill.checkpoint.safetensors_header import tensor_sizes
from pagemill.config.model import ModelConfig
from pagemill.errors import ModelLoadError

Progress = Callable[[int, int], None]
Weight = torch.Tensor | GroupedWeight

_EMBEDDING = "embed_tokens.weight"  # is looked up, not multiplied

# Parts of multimodal models around the text model, which alone is served.
_OTHER_MODALITIES = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
_TEXT_PREFIXES = {"model.language_model.": "model.", "language_model.": ""}


def iterate_weights(
    checkpoint: Checkpoint,
    *,
    progress: Progress | None = None,
    keep_groups: bool = False,
    allocate: Allocate | None = None,
) -> Iterator[tuple[str, Weight]]:
    """Yield (Hugging Face name, tensor) pairs, file by file.

    Tensors of a GGUF file are dequantised to float32 as they are asked for; with `keep_groups`
    those of linear layers stay as they are where groups of 32 can hold them. Those of safetensors
    keep their type and are views of the mapped file, so copy before writing; with `allocate` they
    are read ahead by several threads into memory that it provides. `progress` is told
    (bytes done, bytes in all) after each tensor, in stored bytes. Raises ModelLoadError.
    """
    if isinstance(checkpoint, GGUFCheckpoint):
        return _gguf_weights(checkpoint, progress or _silent, keep_groups)
    if isinstance(checkpoint, FolderCheckpoint):
        return _folder_weights(checkpoint, progress or _silent, allocate)
    raise ModelLoadError(f"{checkpoint.path}: unknown kind of checkpoint")


def _silent(done: int, total: int) -> None:
    """Progress nobody asked for."""


def _gguf_weights(
    checkpoint: GGUFCheckpoint, progress: Progress, keep_groups: bool
) -> Iterator[tuple[str, Weight]]:
    file, config = checkpoint.file, checkpoint.model_config()
    architecture = gguf_architecture(file)
    done, total = 0, checkpoint.weight_bytes()
    for tensor in file.tensors.values():
        done += tensor.num_bytes
        if tensor.name in CONFIG_TENSORS:
            continue
        target = hf_tensor(architecture, tensor.name)
        if target is None:
            raise ModelLoadError(
                f"{file.path}: tensor {tensor.name} is unknown for architecture {architecture}"
            )
        try:
            yield target.name, _gguf_weight(file, tensor, target, config, keep_groups)
        except ValueError:
            raise ModelLoadError(
                f"{file.path}: tensor {tensor.name} of shape {list(tensor.shape)} does not fit "
                f"{config.num_heads} heads"
            ) from None
        progress(done, total)
    file.forget_pages()


def _gguf_weight(
    file: GGUFFile, tensor: GGUFTensor, target: HFTensor, config: ModelConfig, keep_groups: bool
) -> Weight:
    heads = config.num_heads, config.num_kv_heads
    if keep_groups and not target.name.endswith(_EMBEDDING):
        grouped = read_groups(tensor.format, file.raw(tensor), tensor.shape)
        if grouped is not None:
            order = np.arange(len(grouped), dtype=np.float32)
            order = to_hf_layout(order, target.layout, *heads).astype(np.int64)
            return grouped if target.layout == "same" else grouped.rows(torch.from_numpy(order))
    return torch.from_numpy(to_hf_layout(file.dequantize(tensor), target.layout, *heads))


def _folder_weights(
    checkpoint: FolderCheckpoint, progress: Progress, allocate: Allocate | None
) -> Iterator[tuple[str, torch.Tensor]]:
    files = checkpoint.weight_files()
    sizes = {file: tensor_sizes(file) for file in files}
    _check_complete(checkpoint, {name for held in sizes.values() for name in held})
    done, total = 0, sum(sum(held.values()) for held in sizes.values())
    for file, name, tensor in read_ahead(files, allocate) if allocate else _mapped(files):
        done += sizes[file].get(name, 0)
        text_name = _text_model_name(name)
        if text_name is not None:
            yield text_name, tensor
        progress(done, total)


def _mapped(files: list[Path]) -> Iterator[tuple[Path, str, torch.Tensor]]:
    for file in files:
        for name, tensor in _file_weights(file):
            yield file, name, tensor


def _check_complete(checkpoint: FolderCheckpoint, held: set[str]) -> None:
    missing = sorted(checkpoint.expected_tensors() - held)
    if missing:
        raise ModelLoadError(
            f"{checkpoint.path}: {len(missing)} tensors of the index are in no file, the first is "
            f"{missing[0]}; download the model again"
        )


def _file_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{path} is not a usable safetensors file ({error}); download it again"
        ) from None


def _text_model_name(name: str) -> str | None:
    """A tensor's name in the text model, None for tensors of other modalities."""
    if name.startswith(_OTHER_MODALITIES):
        return None
    for prefix, replacement in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name
