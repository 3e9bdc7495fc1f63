"""The check of the check: the property test notices every broken invariant, and soon."""

from __future__ import annotations

import pytest

from engine.mutations import MUTATIONS, Mutation
from engine.trials import Trial

MAX_TRIALS = 500


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_trials_notice(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    # A broken engine may fail in any way: a wrong token, an assertion, an index out of range.
    with pytest.raises((AssertionError, IndexError, KeyError, ValueError, StopIteration)):
        for seed in range(MAX_TRIALS):
            Trial(seed).run()
