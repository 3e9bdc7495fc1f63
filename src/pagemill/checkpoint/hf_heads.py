"""What the name of an architecture says about the end of the model, and a classifier's labels."""

from __future__ import annotations

from pagemill.checkpoint.fields import Fields
from pagemill.config.model import Head

_CLASSIFIER = "ForSequenceClassification"
_HEADS: dict[str, Head] = {"ForCausalLM": "vocabulary", _CLASSIFIER: "classifier"}
_BARE = ("TextModel", "Model")
_MAX_LABELS = 65_536


def head_of(architecture: str) -> Head:
    """`Qwen3Model` has none."""
    return next((head for end, head in _HEADS.items() if architecture.endswith(end)), "none")


def decoder_name(architecture: str) -> str:
    """The generating architecture with the same layers: Qwen3ForCausalLM for Qwen3Model."""
    for end in (_CLASSIFIER, *_BARE):
        if architecture.endswith(end):
            return architecture.removesuffix(end) + "ForCausalLM"
    return architecture


def labels(fields: Fields) -> tuple[str, ...]:
    """The labels by number. transformers leaves out two labels without names, its default."""
    named = fields.mapping("id2label")
    count = len(named) or fields.size("num_labels", 2)
    if count > _MAX_LABELS:
        raise fields.error(f"{count} labels are more than the {_MAX_LABELS} that are supported")
    return tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(count))
