"""From the name of a model, as a user gives it, to its files on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pagemill.checkpoint.builtin import BUILTIN_MODELS, DEFAULT_MODEL, builtin_path
from pagemill.errors import ModelLoadError

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<file>[\w./-]+\.gguf))?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`path` is a folder or a .gguf file, `name` what the model is called by default."""

    path: Path
    name: str


def resolve_model(
    name: str | None,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> ModelSource:
    """Find a model, downloading it if need be.

    `name` is tried as a folder, a .gguf file, a built-in name, and a hub id (`org/name`, or
    `org/name:file.gguf` for one file of it); None is the demo model. `cache_dir` replaces the
    hub's cache for downloads, and the user's cache for joined files. Raises ModelLoadError.
    """
    if name is None:
        return _builtin(DEFAULT_MODEL, cache_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelSource(path, path.resolve().name)
    if path.is_file():
        return _file(path)
    if name in BUILTIN_MODELS:
        return _builtin(name, cache_dir)
    match = _HUB_ID.fullmatch(name)
    if match is None or name.startswith("."):
        known = ", ".join(sorted(BUILTIN_MODELS))
        raise ModelLoadError(
            f"model {name!r} is no folder, .gguf file, built-in name ({known}) or hub id (org/name)"
        )
    from pagemill.checkpoint.hub import download

    found = download(match["repo"], match["file"], revision, offline, cache_dir, progress)
    return ModelSource(found, name)


def user_cache_dir() -> Path:
    """Where PageMill keeps files that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pagemill"


def _builtin(name: str, cache_dir: Path | None) -> ModelSource:
    path = builtin_path(name, cache_dir or user_cache_dir())
    return ModelSource(path, BUILTIN_MODELS[name].title)


def _file(path: Path) -> ModelSource:
    if path.suffix != ".gguf":
        raise ModelLoadError(f"{path} is neither a model folder nor a .gguf file")
    return ModelSource(path, path.stem)
