"""Compiles the kernels of an engine into Triton's cache folder, from which the engine takes them.

Runs as `python -m pagemill.executor.kernels.process`, started by `build.py`. It needs no GPU, and
ends when its standard input does.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

from pagemill.errors import PageMillError
from pagemill.executor.kernels.messages import Job, Progress
from pagemill.executor.kernels.pool import BACKGROUND_NICENESS, ForkPool, Work

_TURN_SECONDS = 0.05
_MOST_COMPILERS = 16  # each takes some hundred megabytes


def _say(progress: Progress) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(progress) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_parent(seconds: float | None = 0.0) -> None:
    """Ends this process, its children and their compilers, if nobody waits for them any more.

    Looks for up to `seconds`, or until the engine says anything.
    """
    if select.select([sys.stdin], [], [], seconds)[0] and not os.read(sys.stdin.fileno(), 4096):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.killpg(os.getpgid(0), signal.SIGTERM)


def _warm_up() -> None:
    """Load what every child needs: the front end, and the hash of the compiler's own files.

    The hash takes half a second, does not hold Python's lock, and is remembered in the process.
    """
    with ThreadPoolExecutor(1) as thread:
        from triton.runtime.cache import triton_key

        key = thread.submit(triton_key)

        import pagemill.executor.kernels.rehearsal
        import pagemill.ops.triton.ops  # noqa: F401

        key.result()


def _build_driver() -> bool:
    """Triton's own C module, which it compiles when it first meets the device."""
    from triton.backends.nvidia.driver import CudaUtils

    try:
        CudaUtils()
    except Exception:  # noqa: BLE001 - the engine will meet the same and say what is missing
        return False
    return True


def compile_all(job: Job) -> Iterator[Progress]:
    """Yields where it is; `ready` once, when what a start needs is done."""
    from pagemill.device.shape_rules import ShapeRules
    from pagemill.executor.kernels.rehearsal import Rehearsal
    from pagemill.ops.triton.collect import GpuModel, KernelVariant, collecting, use_compile_only

    facts = job.facts
    use_compile_only(GpuModel(facts.capability, facts.num_sms, facts.shared_memory))
    pool = ForkPool(max(1, min(_MOST_COMPILERS, facts.num_threads - 1)))  # one core is the engine's

    def needed(variant: KernelVariant) -> None:
        pool.submit(Work(variant.name, variant.compile))

    def progress(ready: bool = False) -> Progress:
        tally = pool.tally
        failed = next((f"{name}: {why}" for name, why in tally.failed.items()), "")
        return Progress(len(tally.compiled), tally.found, pool.left, ready, len(tally.lost), failed)

    pool.submit(Work("driver", _build_driver))
    with collecting(needed), ShapeRules():  # type: ignore[no-untyped-call]
        rehearsal = Rehearsal(job.config, facts)
        for _ in rehearsal.start():
            pool.turn(0)
            yield progress()
        while pool.left:
            pool.turn(_TURN_SECONDS)
            yield progress()
        yield progress(ready=True)
        pool.to_background()
        for _ in rehearsal.serving():
            pool.turn(0)
            yield progress()
    while pool.left:
        pool.turn(_TURN_SECONDS)
        yield progress()


def main() -> int:
    """Compile what the job on standard input needs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _warm_up()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    if not job.hurry:
        os.nice(BACKGROUND_NICENESS)
    try:
        return _work(job)
    except PageMillError:
        return 1  # the engine meets the same, and says so
    except Exception as error:  # noqa: BLE001 - the engine can do without, if more slowly
        sys.stderr.write(f"kernels cannot be found ahead: {type(error).__name__}: {error}\n")
        return 1


def _work(job: Job) -> int:
    last, ready = None, False
    for progress in compile_all(job):
        _end_with_parent()
        if job.hurry and progress != last and not ready:
            _say(progress)
        if progress.ready:
            _make_stamp(job.start_stamp, progress)
            if job.hurry:
                _end_with_parent(None)  # compilers on all cores would slow the engine's start
        last, ready = progress, ready or progress.ready
    if last is not None:
        _make_stamp(job.full_stamp, last)
    return 0


def _make_stamp(path: str, progress: Progress) -> None:
    """Remember that nothing is left to compile. Without one, a later start looks again."""
    if progress.failed or progress.lost:
        return
    with suppress(OSError):  # kernels on a disk that cannot be written to are used all the same
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


if __name__ == "__main__":
    sys.exit(main())
