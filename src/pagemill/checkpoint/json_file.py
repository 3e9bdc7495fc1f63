"""JSON files of a model folder, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pagemill.errors import ModelLoadError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelLoadError when it is missing, broken or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_object_if_present(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
