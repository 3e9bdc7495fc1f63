"""Every stream is an open file, and systems allow few of them unless asked."""

from __future__ import annotations

import resource

WANTED = 65536


def allow_many() -> None:
    """Raise this process's soft limit of open files as far as the hard limit lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
