"""Counts of several processes in one piece of memory, and the limits that use them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from pagemill.api.admission import Admission
from pagemill.api.errors import TooManyRequests
from pagemill.errors import OverloadedError
from pagemill.frontend.board import SharedBoard
from pagemill.frontend.queue_limit import QueueLimit

KEYS = ("-", "aaaa", "bbbb")


def test_rows_see_each_other_and_not_themselves(tmp_path: Path) -> None:
    boards = [SharedBoard(tmp_path / "board", row, 3, KEYS) for row in range(3)]
    boards[0].set_choices(5)
    boards[1].set_choices(7)
    boards[1].set_key("aaaa", 2)
    boards[2].set_key("aaaa", 3)
    boards[2].set_key("bbbb", 1)
    assert [board.choices_elsewhere() for board in boards] == [7, 5, 12]
    assert [board.key_elsewhere("aaaa") for board in boards] == [5, 3, 2]
    assert [board.requests_elsewhere() for board in boards] == [6, 4, 2]
    boards[0].clear(2)
    assert [board.requests_elsewhere() for board in boards] == [2, 0, 2]
    for board in boards:
        board.close()


def test_another_process_sees_it(tmp_path: Path) -> None:
    board = SharedBoard(tmp_path / "board", 0, 2, KEYS)
    script = (
        "import sys; from pathlib import Path; from pagemill.frontend.board import SharedBoard\n"
        "SharedBoard(Path(sys.argv[1]), 1, 2, ('-', 'aaaa', 'bbbb')).set_key('bbbb', 41)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "board")], check=True)
    assert board.key_elsewhere("bbbb") == 41
    board.close()


def test_a_keys_limit_counts_every_process(tmp_path: Path) -> None:
    boards = [SharedBoard(tmp_path / "board", row, 2, KEYS) for row in range(2)]
    here, there = (Admission(board=board) for board in boards)
    with ExitStack() as held:
        held.enter_context(here.admit("aaaa", 2))
        held.enter_context(there.admit("aaaa", 2))
        for admission in (here, there):
            with pytest.raises(TooManyRequests):
                held.enter_context(admission.admit("aaaa", 2))
            held.enter_context(admission.admit("bbbb", 2))
        assert here.num_open == there.num_open == 4
    assert here.num_open == there.num_open == 0
    for board in boards:
        board.close()


def test_waiting_tokens_count_in_every_process(tmp_path: Path) -> None:
    boards = [SharedBoard(tmp_path / "board", row, 2, KEYS) for row in range(2)]
    here, there = (QueueLimit(4, max_tokens=100, board=board) for board in boards)
    here.queue(80)
    with pytest.raises(OverloadedError, match="80 tokens"):
        there.queue(21)
    there.queue(20)
    here.started(80)
    there.queue(80)
    for board in boards:
        board.close()
