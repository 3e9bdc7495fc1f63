"""Sampling defaults that a model's authors recommend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagemill.errors import InvalidParams, ModelLoadError
from pagemill.params import SamplingParams

# Names in generation_config.json -> names in SamplingParams; other keys are Hugging Face's own.
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def default_params(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What requests get for fields that they leave out. Raises ModelLoadError for wrong values."""
    values = {
        ours: generation_config[theirs]
        for theirs, ours in _NAMES.items()
        if generation_config.get(theirs) is not None
    }
    try:
        SamplingParams(**values)
    except InvalidParams as error:
        raise ModelLoadError(
            f"generation_config.json: {error}; use --generation-config vendor-neutral"
        ) from None
    return values
