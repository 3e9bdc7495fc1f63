"""Which kernels a piece of code launches, found without launching or compiling any of them.

Triton asks `jit_cache_hook` before it compiles a kernel that it has not compiled yet, and when that
returns True the launch is skipped. So code that runs on tensors without memory leaves behind the
list of the variants it needs: types, alignment, constants and options, as Triton itself found them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

_WARP_SIZE = 32
_NO_DEVICE = -1  # Triton keeps kernels by device; none of a real one may be met here


@dataclass(frozen=True, slots=True)
class GpuModel:
    """What kernels and their launches depend on of a CUDA device."""

    capability: tuple[int, int]
    num_sms: int
    shared_memory: int  # bytes that one program may have


@dataclass(frozen=True, slots=True)
class KernelVariant:
    """A kernel for arguments of certain types, with certain constants and options."""

    name: str
    function: Any  # Triton's JITFunction
    data: str  # how to compile it, in the form of JITFunction.preload

    def compile(self) -> bool:
        """Put it into the cache folder; False if it is there. Raises what the compiler raises."""
        found: list[bool] = []
        with knobs.runtime.scope(), knobs.compilation.scope():
            knobs.runtime.jit_cache_hook = None
            knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
            _build_launcher(self.function.preload(self.data))
        return not all(found)


def _build_launcher(kernel: Any) -> None:
    """The C module that hands a kernel its arguments, into the cache folder too.

    Before Triton 3.7 there is one for each signature, and a C compiler needs 0.3 s for each when it
    is first launched. Where that fails the engine meets the same, and says what is missing.
    """
    from triton.backends.nvidia import driver as nvidia

    if hasattr(nvidia, "make_launcher"):
        with suppress(Exception):
            nvidia.CudaLauncher(kernel.src, kernel.metadata)


class _Skipped:
    """In place of a compiled kernel: launches nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *_: Any) -> None: ...

    def run(self, *_: Any) -> None: ...


class _Properties:
    """`driver.active.utils`, as far as kernels and launches ask it."""

    def __init__(self, gpu: GpuModel) -> None:
        self._gpu = gpu

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "multiprocessor_count": self._gpu.num_sms,
            "max_shared_mem": self._gpu.shared_memory,
        }


class CompileOnlyDriver:
    """Stands in for Triton's CUDA driver: compiles for `gpu`, which need not be there.

    Set it active in a process of its own: Triton has one driver for all threads.
    """

    def __init__(self, gpu: GpuModel) -> None:
        self.utils = _Properties(gpu)
        major, minor = gpu.capability
        self._target = GPUTarget("cuda", 10 * major + minor, _WARP_SIZE)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return _NO_DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0


def use_compile_only(gpu: GpuModel) -> None:
    """From here on this process compiles kernels for `gpu` and launches none."""
    driver.set_active(CompileOnlyDriver(gpu))


@contextmanager
def collecting(needed: Callable[[KernelVariant], None]) -> Iterator[None]:
    """Launches are skipped; `needed` gets each variant once in a process, when it is first used.

    Only with `use_compile_only`: a real driver would launch kernels that it has compiled before.
    """
    assert isinstance(driver.active, CompileOnlyDriver)

    seen: set[tuple[str, str, str]] = set()

    def skip(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002
        variant = KernelVariant(fn.name, fn.jit_function, compile["specialization_data"])
        if (fn.module, fn.name, variant.data) not in seen:
            seen.add((fn.module, fn.name, variant.data))
            needed(variant)
        # Triton would work out all of this again for each launch, which takes ten times as long.
        fn.jit_function.device_caches[_NO_DEVICE][0][key] = _Skipped()
        return True

    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = skip
        yield
