"""From checkpoint tensors, in any order, to the slots of a model's layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pagemill.checkpoint.scaled import ScaledWeight, StoredWeight
from pagemill.errors import ModelLoadError
from pagemill.layers.base import HoldsWeights, WeightSlot

# Buffers that old checkpoints carry; they are computed here.
_COMPUTED = (".rotary_emb.inv_freq",)
_DUMMY_RANGE = 0.05


def load_weights(
    model: nn.Module, weights: Iterable[tuple[str, StoredWeight]], ignored: frozenset[str]
) -> None:
    """Fill every slot of the model. Raises ModelLoadError naming the first tensor that is wrong."""
    slots = weight_slots(model)
    for name, tensor in weights:
        if name in ignored or name.endswith(_COMPUTED):
            continue
        slot = slots.pop(name, None)
        if slot is None:
            raise ModelLoadError(f"tensor {name} is unknown to the model, or given twice")
        if tuple(tensor.shape) != slot.shape:
            raise ModelLoadError(
                f"tensor {name} has shape {list(tensor.shape)}, expected {list(slot.shape)}"
            )
        _store(slot, tensor)
    if slots:
        raise ModelLoadError(
            f"the checkpoint lacks {len(slots)} tensors, the first is {next(iter(slots))}"
        )


def _store(slot: WeightSlot, tensor: StoredWeight) -> None:
    if not isinstance(tensor, ScaledWeight):
        slot.store(tensor)
    elif slot.store_scaled is not None:
        slot.store_scaled(tensor)
    else:
        slot.store(tensor.dequantize())


def fill_dummy(model: nn.Module, seed: int, dtype: torch.dtype, device: torch.device) -> None:
    """Random weights, made on the device: norms are one, the rest is small and uniform."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, slot in weight_slots(model).items():
        tensor = torch.ones(slot.shape, dtype=dtype, device=device)
        if not name.endswith("norm.weight"):
            tensor.uniform_(-_DUMMY_RANGE, _DUMMY_RANGE, generator=generator)
        slot.store(tensor)


def finish_loading(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, HoldsWeights):
            module.finish_loading()


def weight_slots(model: nn.Module) -> dict[str, WeightSlot]:
    """Every checkpoint tensor that the model needs, by its Hugging Face name."""
    slots = {}
    for path, module in model.named_modules():
        if isinstance(module, HoldsWeights):
            parent, _, own = path.rpartition(".")
            for slot in module.weight_slots():
                parts = (parent, slot.part or own, slot.kind)
                slots[".".join(part for part in parts if part)] = slot
    return slots
