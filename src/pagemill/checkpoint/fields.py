"""Typed access to the keys of a config file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pagemill.errors import ModelLoadError

_MAX_COUNT = 2**31 - 1
_DTYPES = {"float32", "float16", "bfloat16"}


class Fields:
    """A config's keys; a key that is null counts as absent. Wrong types raise ModelLoadError."""

    def __init__(self, raw: Mapping[str, Any], origin: str) -> None:
        self._raw = raw
        self.origin = origin

    def get(self, key: str) -> Any:
        return self._raw.get(key)

    def error(self, message: str) -> ModelLoadError:
        return ModelLoadError(f"{self.origin}: {message}")

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self.count(key, default)
        if value < 1:
            raise self.error(f"{key} must be at least 1, got {value}")
        return value

    def count(self, key: str, default: int | None = 0) -> int:
        """A whole number of at least 0."""
        value = self._raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(f"{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
            raise self.error(f"{key} must be a whole number, got {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._raw.get(key)
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.error(f"{key} must be a number, got {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, got {value!r}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._raw.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(f"{key} must be an object, got {value!r}")
        return dict(value)


def checkpoint_dtype(fields: Fields, default: str = "bfloat16") -> str:
    """The type in which the checkpoint's weights are stored."""
    value = str(fields.get("dtype") or fields.get("torch_dtype") or default)
    value = value.removeprefix("torch.")
    return value if value in _DTYPES else default
