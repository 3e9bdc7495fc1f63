from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pagemill.device.cpu import CpuDevice
from pagemill.device.select import select_device
from pagemill.runner.staging import StagingRing
from unit.runner.harness import DEVICES


@pytest.mark.parametrize("name", DEVICES)
def test_arrays_arrive_whatever_their_type_and_size(name: str) -> None:
    ring = StagingRing(select_device(name), 2, 64)
    for size in (1, 3, 100, 0, 7):
        arrays = {
            "a": np.arange(size, dtype=np.int32),
            "b": np.arange(3, dtype=np.int64) - 2**40,
            "c": np.linspace(0, 1, size, dtype=np.float32),
        }
        views = ring.upload(arrays)
        for key, array in arrays.items():
            assert np.array_equal(views[key].cpu().numpy(), array)
            assert views[key].cpu().numpy().dtype == array.dtype


class LateEvent:
    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def synchronize(self) -> None:
        self._log.append(self._name)

    def query(self) -> bool:
        return False


class LateDevice(CpuDevice):
    """Remembers which host buffers were given, and which events were waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[int] = []
        self.waited: list[str] = []

    def upload(self, host: Tensor, out: Tensor) -> None:
        super().upload(host, out)
        self.buffers.append(host.data_ptr())

    def record_event(self) -> LateEvent:  # type: ignore[override]
        return LateEvent(self.waited, f"upload {len(self.buffers)}")


def test_a_buffer_is_written_again_only_after_its_copy() -> None:
    device = LateDevice()
    ring = StagingRing(device, 2, 64)
    for i in range(4):
        ring.upload({"a": np.full(2, i, np.int64)})
    assert device.buffers[0] == device.buffers[2] != device.buffers[1] == device.buffers[3]
    assert device.waited == ["upload 1", "upload 2"]
    ring.upload({"a": np.zeros(1000, np.int64)})
    assert torch.equal(ring.upload({"a": np.arange(1000)})["a"], torch.arange(1000))
