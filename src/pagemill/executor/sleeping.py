"""Giving the device's memory up for a while, and how it is taken back.

Sleep drops the runner with all it owns: the KV cache, the slots, the staging buffers and the
captured graphs, which hold the addresses of weights and cache and so cannot outlive them. The
weights go to the host's memory (level 1; on a CPU they are there already) or are dropped (level
2). Waking up makes a new runner, of the same sizes, and captures anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pagemill.device.base import Device
from pagemill.errors import ModelLoadError, PageMillError
from pagemill.executor.base import Runner
from pagemill.models.base import AnyModel

LEVELS = (1, 2)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to get the model, and a runner for it. Must not hold on to either."""

    load: Callable[[], AnyModel]
    start: Callable[[AnyModel], Runner]


class Resident:
    """A model and its runner, which is None while they sleep."""

    def __init__(self, model: AnyModel, runner: Runner, device: Device, recipe: Recipe) -> None:
        self.runner: Runner | None = runner
        self._model: AnyModel | None = model
        self._device = device
        self._recipe = recipe

    def sleep(self, level: int) -> None:
        """Give up the memory; no batch may be under way. Raises PageMillError for a wrong level."""
        if level not in LEVELS:
            raise PageMillError(f"sleep has the levels 1 and 2, not {level}")
        self._device.synchronize()
        self.runner = None
        if level == 2:
            self._model = None
        elif self._model is not None:
            move(self._model, torch.device("cpu"))
        self._device.release_memory()

    def wake_up(self) -> None:
        """Be as before, with an empty cache. Raises ModelLoadError, and then still sleeps."""
        if self.runner is not None:
            return
        try:
            if self._model is None:
                self._model = self._recipe.load()
            move(self._model, self._device.torch_device)
            self.runner = self._recipe.start(self._model)
        except torch.OutOfMemoryError:
            self._device.release_memory()
            raise ModelLoadError(
                f"the memory of {self._device.torch_device} is taken; free some and wake up again"
            ) from None

    def close(self) -> None:
        """Let go of everything for good."""
        self._device.close()
        self.runner = self._model = None


def move(model: AnyModel, device: torch.device) -> None:
    """Move all tensors of a model. The objects stay, since layers share some of them."""
    for tensor in held_tensors(model):
        if tensor.device != device:  # on a CPU, native layers hold addresses
            tensor.data = tensor.data.to(device)


def held_tensors(model: AnyModel) -> list[Tensor]:
    """Parameters, buffers and the plain tensors that modules hold, each once."""
    assert isinstance(model, nn.Module)
    found: dict[int, Tensor] = {}
    for module in model.modules():
        parts = (module._parameters, module._buffers, vars(module))
        for tensor in (value for part in parts for value in part.values()):
            if isinstance(tensor, Tensor):
                found[id(tensor)] = tensor
    return list(found.values())
