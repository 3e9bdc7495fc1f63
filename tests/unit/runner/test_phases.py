"""The line that says where the time of a start went."""

from __future__ import annotations

from pagemill.executor.phases import Phases


def test_every_phase_has_its_seconds() -> None:
    times = iter([10.0, 10.5, 12.0, 15.25])
    phases = Phases("device", clock=lambda: next(times))
    phases.begin("weights")
    phases.begin("graphs")
    assert phases.summary() == "engine up in 5.2 s (device 0.5 s, weights 1.5 s, graphs 3.2 s)"
