"""`pagemill doctor`: look, print, and end with 1 when there is a real problem."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable

import msgspec

from pagemill.cli.doctor.facts import Facts, Finding, Port
from pagemill.cli.doctor.findings import find
from pagemill.cli.doctor.fits import SIZES, Fit, fit_table
from pagemill.cli.doctor.machine import System
from pagemill.cli.doctor.report import fact_lines, finding_lines, table_lines, trial_line
from pagemill.cli.doctor.software import cuda_driver, gpus, software
from pagemill.cli.doctor.storage import disks
from pagemill.cli.doctor.trial import TrialRun
from pagemill.cli.listen import bind
from pagemill.config.facts import DeviceFacts, detect
from pagemill.config.model import ModelConfig
from pagemill.errors import ConfigError

DEFAULT_PORT = 8000


class Diagnosis(msgspec.Struct):
    """What `--json` prints."""

    facts: Facts
    fits: list[Fit]
    findings: list[Finding]


def doctor(parsed: argparse.Namespace) -> int:
    """The `doctor` command. Returns 1 when something keeps PageMill from working.

    Raises ModelLoadError or ConfigError for a model that cannot be found or read.
    """
    trial = TrialRun()
    device = detect()
    models = [_named(parsed.model)] if parsed.model else SIZES
    facts = look(device, parsed.host, parsed.port)
    if not parsed.json:
        _print(fact_lines(facts))
    facts.trial = trial.result()
    diagnosis = Diagnosis(facts, fit_table(device, free_memory(facts, device), models), find(facts))
    if parsed.json:
        _print([msgspec.json.format(msgspec.json.encode(diagnosis)).decode()])
    else:
        _print([trial_line(facts.trial)])
        _print(table_lines(diagnosis.fits, device.name))
        _print(finding_lines(diagnosis.findings))
    return int(any(finding.level == "problem" for finding in diagnosis.findings))


def look(device: DeviceFacts, host: str, port: int | None) -> Facts:
    """Everything but the trial; takes about half a second."""
    system = System()
    nvidia_tool, found = gpus()
    return Facts(
        cpu=system.cpu(),
        memory=system.memory(),
        software=software(),
        gpus=found,
        nvidia_tool=nvidia_tool,
        cuda_device=device.name if device.type == "cuda" else None,
        cuda_driver=cuda_driver(),
        disks=disks(os.environ),
        port=_port(host, port),
        open_files=_open_files(),
    )


def free_memory(facts: Facts, device: DeviceFacts) -> int:
    """Bytes that a model could take on the device now."""
    if device.type == "cpu":
        return facts.memory.available
    used = facts.gpus[0].used_memory if facts.gpus else 0
    return device.total_memory - used


def _named(name: str) -> tuple[str, ModelConfig]:
    """A model by name, never downloaded."""
    from pagemill.checkpoint.open import open_checkpoint
    from pagemill.checkpoint.source import resolve_model

    source = resolve_model(name, offline=True)
    return source.name, open_checkpoint(source.path).model_config()


def _port(host: str, asked: int | None) -> Port:
    port = Port(host=host, number=asked or DEFAULT_PORT, free=True, asked=asked is not None)
    try:
        bind(host, port.number)[0].close()
    except ConfigError as error:
        port.free, port.reason = False, str(error)
    return port


def _open_files() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 8192
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**20


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True, file=sys.stdout)
