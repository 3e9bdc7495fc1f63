"""Weights quantised by groups of 32 inputs, as GGUF files hold them; what int8 and int4 mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

GROUP = 32
_FOUR_BITS_TOP, _FOUR_BITS_MIDDLE = 15, 8
_EIGHT_BITS_TOP = 127
_SMALLEST_SCALE = 6e-8  # the least float16 above zero
_ROWS_AT_ONCE = 8192  # bounds the float32 copies while a large vocabulary is quantised


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """A matrix [rows, in_features]: weight = scale * code + offset, by groups of 32 inputs.

    Codes of 4 bits are uint8 from 0 to 15 and mean code - 8 where there are no offsets; those of
    8 bits are int8. Codes beyond `in_features` are padding.
    """

    codes: Tensor  # [rows, groups * 32]
    scale: Tensor  # float16 [rows, groups]
    offset: Tensor | None  # float16 [rows, groups]
    bits: int
    in_features: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.codes), self.in_features

    def __len__(self) -> int:
        return len(self.codes)

    def float(self) -> Tensor:
        """The weights, float32 [rows, in_features]."""
        offset, codes = self.offset, self.codes.view(len(self), -1, GROUP).float()
        if offset is None and self.bits == 4:
            codes -= _FOUR_BITS_MIDDLE
        weights = codes * self.scale.float().unsqueeze(2)
        if offset is not None:
            weights += offset.float().unsqueeze(2)
        return weights.flatten(1)[:, : self.in_features]

    def rows(self, order: Tensor) -> GroupedWeight:
        """The rows in another order."""
        offset = None if self.offset is None else self.offset[order]
        return replace(self, codes=self.codes[order], scale=self.scale[order], offset=offset)

    def widened(self) -> GroupedWeight:
        """The same weights with codes of 8 bits."""
        if self.bits == 8:
            return self
        shift = _FOUR_BITS_MIDDLE if self.offset is None else 0
        return replace(self, codes=self.codes.to(torch.int8) - shift, bits=8)

    def with_offsets(self) -> GroupedWeight:
        """The same weights with offsets, which may be zero."""
        if self.offset is not None:
            return self
        middle = _FOUR_BITS_MIDDLE if self.bits == 4 else 0
        return replace(self, offset=-middle * self.scale)


Weight = Tensor | GroupedWeight


def quantize_groups(weight: Tensor, bits: int) -> GroupedWeight:
    """[rows, in] of any floating type in 8 bits around zero, or in 4 with offsets."""
    parts = [_quantize(part, bits) for part in torch.split(weight, _ROWS_AT_ONCE)]
    return parts[0] if len(parts) == 1 else stack(parts)


def stack(parts: list[GroupedWeight]) -> GroupedWeight:
    """Matrices with the same inputs on top of each other, in the form that can hold them all."""
    if len({part.bits for part in parts}) > 1:
        parts = [part.widened() for part in parts]
    if any(part.offset is not None for part in parts):
        parts = [part.with_offsets() for part in parts]
    offsets = [part.offset for part in parts if part.offset is not None]
    return GroupedWeight(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scale for part in parts]),
        torch.cat(offsets) if offsets else None,
        parts[0].bits,
        parts[0].in_features,
    )


def _quantize(weight: Tensor, bits: int) -> GroupedWeight:
    rows, in_features = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -in_features % GROUP))
    groups = padded.view(rows, -1, GROUP)
    if bits == 8:
        scale = _scale(groups.abs().amax(2) / _EIGHT_BITS_TOP)
        codes = torch.round(groups / scale.float().unsqueeze(2)).clamp_(-127, 127)
        return GroupedWeight(codes.to(torch.int8).flatten(1), scale, None, 8, in_features)
    low = groups.amin(2)
    scale = _scale((groups.amax(2) - low) / _FOUR_BITS_TOP)
    offset = low.half()
    codes = (groups - offset.float().unsqueeze(2)) / scale.float().unsqueeze(2)
    codes = codes.round_().clamp_(0, _FOUR_BITS_TOP).to(torch.uint8)
    return GroupedWeight(codes.flatten(1), scale, offset, 4, in_features)


def _scale(values: Tensor) -> Tensor:
    return values.clamp_(min=_SMALLEST_SCALE).half()
