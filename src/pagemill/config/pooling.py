"""Whether a model generates text or pools its hidden states, and how it pools them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from pagemill.config.model import ModelConfig
from pagemill.errors import ConfigError

Method = Literal["cls", "last", "mean"]
Activation = Literal["none", "sigmoid", "softmax"]

_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "none",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
}
_PROBLEM_TYPES: dict[str, Activation] = {
    "regression": "none",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}


@dataclass(frozen=True, slots=True)
class PoolingFiles:
    """What the files of sentence-transformers beside a model say. `max_length` 0: nothing."""

    method: Method
    normalize: bool
    max_length: int = 0


class PoolingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How hidden states become the answer to a request.

    A classifier's answer has a number for each of `labels`. `dimensions` are the lengths to which
    an embedding may be cut (Matryoshka): None for none, () for any.
    """

    task: Literal["embed", "classify"]
    method: Method
    width: int  # numbers in an answer
    normalize: bool = True  # embeddings
    activation: Activation = "none"  # classifiers
    dimensions: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()
    whole_prompts: bool = False  # a prompt must be computed in one step
    cached: bool = True  # keys and values are kept in pages

    @property
    def scores_pairs(self) -> bool:
        """A cross-encoder: one number for two texts."""
        return self.task == "classify" and self.width == 1


def resolve_pooling(
    asked: str, model: ModelConfig, files: PoolingFiles | None
) -> PoolingConfig | None:
    """How to pool, or None to generate. `asked` is --runner. Raises ConfigError.

    A decoder with a vocabulary pools when it is asked to, or when the files of
    sentence-transformers beside it say so.
    """
    generates = model.head == "vocabulary"
    if asked == "generate" and not generates:
        raise ConfigError(
            f"--runner generate: {model.architecture} has no vocabulary to generate from; "
            "it is an embedding or classification model"
        )
    if asked == "generate" or (asked == "auto" and generates and files is None):
        return None
    return _classifier(model) if model.head == "classifier" else _embedder(model, files)


def _embedder(model: ModelConfig, files: PoolingFiles | None) -> PoolingConfig:
    method: Method = "cls" if model.encoder else "last"
    if files is not None:
        method = files.method
    return PoolingConfig(
        task="embed",
        method=method,
        width=model.hidden_size,
        normalize=files is None or files.normalize,
        dimensions=_dimensions(model),
        whole_prompts=method != "last" or model.encoder is not None,
        cached=model.encoder is None,
    )


def _classifier(model: ModelConfig) -> PoolingConfig:
    return PoolingConfig(
        task="classify",
        method="cls" if model.encoder else "last",
        width=len(model.labels),
        activation=_activation(model),
        labels=model.labels,
        whole_prompts=model.encoder is not None,
        cached=model.encoder is None,
    )


def _dimensions(model: ModelConfig) -> tuple[int, ...] | None:
    """`matryoshka_dimensions` or `is_matryoshka` in config.json, as vLLM reads them."""
    listed = model.raw.get("matryoshka_dimensions")
    if isinstance(listed, list) and listed:
        return tuple(n for n in listed if type(n) is int and 0 < n <= model.hidden_size)
    return () if model.raw.get("is_matryoshka") is True else None


def _activation(model: ModelConfig) -> Activation:
    """The one that the model's authors name, else what suits the number of labels."""
    problem = _PROBLEM_TYPES.get(str(model.raw.get("problem_type")))
    if problem is not None:
        return problem
    newer = model.raw.get("sentence_transformers")
    named = newer.get("activation_fn") if isinstance(newer, dict) else None
    named = named or model.raw.get("sbert_ce_default_activation_function")
    if named is None:
        return "sigmoid" if len(model.labels) == 1 else "softmax"
    short = str(named).rpartition(".")[2]
    if short not in _ACTIVATIONS:
        raise ConfigError(
            f"the model's activation {short!r} is not supported; known are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[short]
