"""The last steps on the host: cut, normalise, activate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagemill.config.pooling import PoolingConfig
from pagemill.params import PoolingParams

Float32 = NDArray[np.float32]

_MIN_NORM = 1e-12


def finish(values: Float32, params: PoolingParams, config: PoolingConfig) -> Float32:
    """What a request asked for, from [..., width] numbers as the model made them."""
    if config.task == "classify":
        return activate(values, "none" if params.use_activation is False else config.activation)
    wanted = config.normalize if params.use_activation is None else params.use_activation
    if params.dimensions is not None and params.dimensions < values.shape[-1]:
        values = values[..., : params.dimensions]
    return normalized(values) if wanted else values


def normalized(values: Float32) -> Float32:
    """With Euclidean length 1."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(length, _MIN_NORM), np.float32)


def activate(values: Float32, name: str) -> Float32:
    """Logits to scores."""
    if name == "sigmoid":
        # Exact for large numbers of either sign, without overflow.
        return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)
    if name == "softmax":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
    return values
