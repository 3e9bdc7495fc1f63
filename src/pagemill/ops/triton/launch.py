"""What every launch asks of the device: its multiprocessors, and early starts of the next kernel.

Programmatic dependent launch (CUDA programming guide, "Programmatic Dependent Launch and
Synchronization"; compute capability 9.0 and later) lets a kernel start while the one before it
drains. The rule all kernels here keep: nothing that an earlier kernel wrote is read, and nothing
at all is written, before `wait_for_inputs`; only weights may be loaded before it.
"""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pagemill.ops.triton.helper import helper

HOPPER = (9, 0)
INTERPRETED_SMS = 4  # there is no device to ask in the interpreter
# Bytes of shared memory for a program: A100s have 163 KiB, later ones of their kind 227, but cards
# of compute capability 8.6, 8.9 and 12.0 only 99. What is tuned for Hopper fits the first two.
SMALL_SHARED = 99 * 1024


@helper
def let_next_start(PDL: tl.constexpr):
    """Let the next kernel start early; `wait_for_inputs` must follow before inputs are read."""
    if PDL:
        gdc_launch_dependents()


@helper
def wait_for_inputs(PDL: tl.constexpr):
    """Let the next kernel start early, then wait until the kernels before this one are done."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


def _properties(device: torch.device) -> dict[str, int]:
    """Of a CUDA device; for tensors without memory, of the one that is compiled for."""
    properties: dict[str, int] = triton.runtime.driver.active.utils.get_device_properties(
        device.index or 0
    )
    return properties


@functools.lru_cache(maxsize=64)
def _supports_pdl(device: torch.device) -> bool:
    if device.type == "meta":
        target = triton.runtime.driver.active.get_current_target()
        return bool(divmod(target.arch, 10) >= HOPPER)
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER


def supports_pdl(x: Tensor) -> bool:
    """Whether kernels on x's device may be launched with `launch_pdl`."""
    return _supports_pdl(x.device)


@functools.lru_cache(maxsize=64)
def _num_sms(device: torch.device) -> int:
    if device.type == "meta":
        return int(_properties(device)["multiprocessor_count"])
    if device.type != "cuda":
        return INTERPRETED_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def num_sms(x: Tensor) -> int:
    """Multiprocessors of x's device."""
    return _num_sms(x.device)


@functools.lru_cache(maxsize=64)
def _has_small_shared(device: torch.device) -> bool:
    if device.type not in ("cuda", "meta"):
        return False
    return bool(_properties(device)["max_shared_mem"] <= SMALL_SHARED)


def has_small_shared(x: Tensor) -> bool:
    """Whether a program on x's device gets no more than `SMALL_SHARED`."""
    return _has_small_shared(x.device)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
