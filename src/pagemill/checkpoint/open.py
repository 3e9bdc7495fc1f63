"""From a path to the reader of its format."""

from __future__ import annotations

from pathlib import Path

from pagemill.checkpoint.base import Checkpoint
from pagemill.checkpoint.folder import FolderCheckpoint
from pagemill.checkpoint.gguf_checkpoint import GGUFCheckpoint
from pagemill.errors import ModelLoadError


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model folder or a .gguf file. Raises ModelLoadError."""
    path = Path(path)
    if path.is_file():
        return GGUFCheckpoint(path)
    if not path.is_dir():
        raise ModelLoadError(f"{path}: no such model folder or .gguf file")
    if (path / "config.json").is_file():
        return FolderCheckpoint(path)
    return GGUFCheckpoint(_only_gguf(path))


def _only_gguf(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found[:8])
        raise ModelLoadError(f"{folder} has several GGUF files; name one of them: {names}")
    raise ModelLoadError(
        f"{folder} has neither a config.json nor a .gguf file; is it a model folder?"
    )
