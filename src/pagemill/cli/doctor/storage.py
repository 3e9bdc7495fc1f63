"""The folders that PageMill uses: room, kind of file system, and how fast they are read."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pagemill.checkpoint.source import user_cache_dir
from pagemill.cli.doctor.facts import Disk

PROBE_BYTES = 8 * 2**20


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps downloads, by its own rules."""
    if "HF_HUB_CACHE" in environ:
        return Path(environ["HF_HUB_CACHE"])
    base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(environ.get("HF_HOME") or base / "huggingface") / "hub"


def disks(environ: Mapping[str, str]) -> list[Disk]:
    """The folders in use, whether they exist yet or not."""
    return [
        disk("models", hub_cache(environ)),
        disk("cache", user_cache_dir()),
        disk("sockets", Path(tempfile.gettempdir())),
    ]


def disk(use: str, path: Path) -> Disk:
    """One folder; where it does not exist, what holds for the folder it would be made in."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    writable = os.access(existing, os.W_OK | os.X_OK)
    return Disk(
        use=use,
        path=str(path),
        writable=writable,
        free=shutil.disk_usage(existing).free,
        file_system=file_system(existing, Path("/proc/mounts")),
        read_speed=read_speed(existing) if writable else None,
    )


def file_system(path: Path, mounts: Path) -> str:
    """The type of the file system that holds a path; empty where the system does not tell."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    real, best = str(path.resolve()), ("", "")
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        if real == point or real.startswith(point.rstrip("/") + "/"):
            best = max(best, (point, kind), key=lambda found: len(found[0]))
    return best[1]


def read_speed(folder: Path, num_bytes: int = PROBE_BYTES) -> float | None:
    """Bytes per second of reading a file that is on the disk but not in memory."""
    if not hasattr(os, "posix_fadvise"):
        return None
    with suppress(OSError), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(os.urandom(num_bytes))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(2**20):
            pass
        return num_bytes / (time.perf_counter() - start)
    return None
