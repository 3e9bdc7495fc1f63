"""Float8 weights with their scales, as checkpoints store them side by side.

Two families of names are known: `weight_scale` (compressed-tensors, and `fp8` with one scale a
tensor) and `weight_scale_inv` (`fp8` with a scale for each block, which is also a factor despite
its name). Scales of activations are left out: these are rounded by their own size, token by token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pagemill.checkpoint.groups import Weight
from pagemill.errors import ModelLoadError

BLOCK = 128
_FLOAT8 = torch.float8_e4m3fn
_SCALES = (".weight_scale", ".weight_scale_inv")
_UNUSED = (".input_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale")


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """values [out, in] times scale: [out, 1] or, for blocks, [out, ceil(in / 128)]; float32."""

    values: Tensor  # float8_e4m3fn
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def dequantize(self) -> Tensor:
        """float32 [out, in]."""
        if self.scale.shape[1] == 1:
            return self.values.float() * self.scale
        columns = self.scale.repeat_interleave(BLOCK, dim=1)[:, : self.shape[1]]
        return self.values.float() * columns


StoredWeight = Weight | ScaledWeight


def join_scales(
    weights: Iterable[tuple[str, Weight]],
) -> Iterator[tuple[str, StoredWeight]]:
    """Put every float8 weight together with its scales; other tensors pass.

    Raises ModelLoadError for weights without scales and the other way round.
    """
    values: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for name, tensor in weights:
        if name.endswith(_UNUSED):
            continue
        stem, _, kind = name.rpartition(".")
        if isinstance(tensor, Tensor) and name.endswith(_SCALES):
            scales[stem] = tensor
        elif isinstance(tensor, Tensor) and kind == "weight" and tensor.dtype == _FLOAT8:
            values[stem] = tensor
        else:
            yield name, tensor
            continue
        if stem in values and stem in scales:
            joined = ScaledWeight(values.pop(stem), scales.pop(stem))
            yield f"{stem}.weight", _by_rows(stem, joined)
    if values or scales:
        stem = next(iter(values or scales))
        missing = "scale" if stem in values else "float8 values"
        raise ModelLoadError(f"the checkpoint has no {missing} for {stem}.weight")


def _by_rows(stem: str, stored: ScaledWeight) -> ScaledWeight:
    """One scale of a tensor, a row or a block, as scales of rows."""
    rows, columns = stored.shape
    scale = stored.scale.float()
    if scale.numel() == 1:
        return ScaledWeight(stored.values, scale.reshape(1, 1).expand(rows, 1).contiguous())
    if scale.numel() == rows and scale.shape[0] == rows:
        return ScaledWeight(stored.values, scale.reshape(rows, 1))
    if tuple(scale.shape) == (-(-rows // BLOCK), -(-columns // BLOCK)):
        return ScaledWeight(stored.values, scale.repeat_interleave(BLOCK, dim=0)[:rows])
    raise ModelLoadError(
        f"the scales of {stem}.weight have shape {list(scale.shape)}, which is none for a matrix "
        f"of {rows} x {columns}: expected one, one a row, or one for each {BLOCK} x {BLOCK}"
    )
