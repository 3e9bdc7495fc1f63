"""Downloads from a model hub, through huggingface_hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagemill.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable

_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
# The same weights once more, in other formats.
_UNWANTED = ["original/*", "consolidated*", "onnx/*", "openvino/*", "coreml/*", "runs/*"]


def download(
    repo: str,
    file: str | None,
    revision: str | None,
    offline: bool,
    cache_dir: Path | None,
    progress: bool,
) -> Path:
    """A repository's folder in the cache, or one file of it. Raises ModelLoadError.

    HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured by the library itself.
    """
    import huggingface_hub

    folder = _run(
        repo,
        revision,
        lambda: huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=offline,
            tqdm_class=None if progress else _silent_progress(),
            allow_patterns=_WANTED if file is None else [file],
            ignore_patterns=_UNWANTED if file is None else None,
        ),
    )
    if file is not None:
        return _require(folder / file, f"model {repo} has no file {file}")
    hint = f"for a GGUF repository, name one file: {repo}:FILE.gguf"
    return _require(folder / "config.json", f"model {repo} has no config.json; {hint}").parent


def _require(path: Path, complaint: str) -> Path:
    if not path.is_file():
        raise ModelLoadError(complaint)
    return path


def _run(repo: str, revision: str | None, fetch: Callable[[], Any]) -> Path:
    from huggingface_hub import errors

    try:
        return Path(fetch())
    except errors.GatedRepoError:
        reason = "needs its licence accepted on the hub, and HF_TOKEN set to a token of yours"
    except errors.RepositoryNotFoundError:
        reason = "does not exist on the hub, or is private (then set HF_TOKEN)"
    except errors.RevisionNotFoundError:
        reason = f"has no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        reason = "is not in the cache, and the hub cannot be reached or offline mode is on"
    except errors.EntryNotFoundError:
        reason = "has no such file"
    except errors.HFValidationError:
        reason = "is no valid hub id"
    except (errors.HfHubHTTPError, OSError, RuntimeError) as error:
        reason = f"cannot be downloaded: {_one_line(error)}"
    raise ModelLoadError(f"model {repo} {reason}")


def _one_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _silent_progress() -> type:
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class SilentProgress(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return SilentProgress
