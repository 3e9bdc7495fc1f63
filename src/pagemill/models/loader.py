"""Build a model and fill it with weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from pagemill.checkpoint.groups import Weight
from pagemill.checkpoint.scaled import StoredWeight, join_scales
from pagemill.config.model import ModelConfig
from pagemill.config.quantization import checkpoint_scheme
from pagemill.errors import ModelLoadError
from pagemill.layers.base import BuildContext
from pagemill.models.base import AnyModel
from pagemill.models.registry import build_model
from pagemill.models.weights import fill_dummy

Builder = Callable[[ModelConfig, BuildContext], AnyModel]


def load_model(
    config: ModelConfig,
    ctx: BuildContext,
    weights: Iterable[tuple[str, Weight]] | None,
    *,
    seed: int = 0,
    build: Builder = build_model,
) -> AnyModel:
    """The model on `ctx.device`, ready to run; `weights` None: random ones from `seed`.

    `config.max_position` sizes the rotary tables, so give it the context length that is served.
    Raises ModelLoadError naming what is wrong with the architecture or the weights, or that the
    device has too little memory.
    """
    stored: Iterable[tuple[str, StoredWeight]] | None = weights
    if checkpoint_scheme(config.quantization) and weights is not None:
        stored = join_scales(weights)
    try:
        return _load(config, ctx, stored, seed, build)
    except torch.OutOfMemoryError:
        raise ModelLoadError(
            f"the weights do not fit into the memory of {ctx.device}; free some, or take a "
            "smaller model"
        ) from None


@torch.no_grad()
def _load(
    config: ModelConfig,
    ctx: BuildContext,
    weights: Iterable[tuple[str, StoredWeight]] | None,
    seed: int,
    build: Builder,
) -> AnyModel:
    model = build(config, ctx)
    assert isinstance(model, nn.Module)
    if weights is None:
        fill_dummy(model, seed, ctx.dtype, ctx.device)
        model.finish_loading()
    else:
        model.load_weights(weights)
    model.eval()
    return model
