"""Whatever happens to a request between its prompt and its end, its output is that of it alone."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.trials import Trial

TRIALS_PER_TEST = 500
INTERESTING = (
    "preemptions",
    "cached tokens",
    "accepted drafts",
    "rejected drafts",
    "mixed batches",
    "grammar batches",
    "dropped blocks",
    "one token left",
    "timeouts",
    "ended by abort",
    "ended by length",
    "ended by stop",
)


@pytest.mark.parametrize("part", range(10))
def test_every_request_gets_the_output_it_would_get_alone(part: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(part * TRIALS_PER_TEST, (part + 1) * TRIALS_PER_TEST):
        seen += Trial(seed).run()
    missing = [name for name in INTERESTING if not seen[name]]
    assert not missing, "the trials no longer exercise everything"
