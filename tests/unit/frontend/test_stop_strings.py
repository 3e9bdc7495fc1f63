"""The streamed text equals the whole text cut at the first stop string, however it is split."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pagemill.frontend.stop_strings import StopStrings

ALPHABET = "abc"


def cut_whole(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Read character by character: the first stop to end counts, of several the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


def stream(pieces: list[str], stops: list[str], include: bool) -> tuple[list[str], str | None]:
    search = StopStrings(stops, include_in_output=include)
    released = []
    for piece in pieces:
        text, stop = search.add(piece)
        released.append(text)
        if stop is not None:
            return released, stop
    return [*released, search.flush()], None


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.text(ALPHABET, max_size=6), max_size=12),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4),
    include=st.booleans(),
)
@example(pieces=["abc", "c"], stops=["abcc", "bc"], include=False)
@example(pieces=["ab", "ab", "c"], stops=["ababc", "abc"], include=True)
def test_streamed_equals_whole(pieces: list[str], stops: list[str], include: bool) -> None:
    released, stop = stream(pieces, stops, include)
    assert ("".join(released), stop) == cut_whole("".join(pieces), stops, include)


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text(ALPHABET, max_size=4), max_size=10),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_holds_back_no_more_than_needed(pieces: list[str], stops: list[str]) -> None:
    search = StopStrings(stops)
    seen = released = ""
    for piece in pieces:
        text, stop = search.add(piece)
        seen, released = seen + piece, released + text
        if stop is not None:
            return
        held = seen[len(released) :]
        prefixes = {s[:size] for s in stops for size in range(1, len(s))}
        longest = max((p for p in prefixes if seen.endswith(p)), key=len, default="")
        assert held == longest


def test_unmatched_text_is_skipped_but_may_begin_a_match() -> None:
    search = StopStrings(["END", "N"])
    assert search.add("END E", match=False) == ("END ", None)
    assert search.add("N") == ("E", "N")
    search = StopStrings(["END"])
    assert search.add("END EN", match=False) == ("END ", None)
    assert search.add("D!") == ("", "END")


@pytest.mark.parametrize(("include", "text"), [(False, "one "), (True, "one STOP")])
def test_text_after_the_stop_is_dropped(include: bool, text: str) -> None:
    search = StopStrings(["STOP"], include_in_output=include)
    assert search.add("one STOP two STOP") == (text, "STOP")
