"""The output file: whole lines only, recognised when it is opened again."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from pagemill.api.batch.journal import Journal, JournalError
from pagemill.api.batch.lines import BatchOutput, LineError, LineResponse

STAMP = "0123456789abcdef"


@contextmanager
def opened(path: Path, stamp: str = STAMP) -> Iterator[Journal]:
    journal = Journal(path, stamp)
    try:
        yield journal
    finally:
        journal.close()


def output(journal: Journal, number: int, status: int = 200) -> bytes:
    response = LineResponse(status, "r", msgspec.Raw(b'{"text":"\\n"}'))
    return BatchOutput(journal.id_of(number), f"c{number}", response).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def write(path: Path, *numbers: int) -> None:
    with opened(path) as journal:
        for number in numbers:
            journal.append(output(journal, number))


def test_what_was_written_is_known_again(path: Path) -> None:
    with opened(path) as journal:
        assert journal.done.lines == set()
        journal.append(output(journal, 2))
        journal.append(output(journal, 1, status=400))
        error = LineError("invalid_line", "no")
        journal.append(BatchOutput(journal.id_of(7), None, error=error).encode())
    with opened(path) as journal:
        assert journal.done.lines == {1, 2, 7}
        assert journal.done.num_failed == 2
        assert journal.done.num_torn_bytes == 0


def test_every_cut_of_the_last_line_is_repaired(path: Path) -> None:
    write(path, 1, 2)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        with opened(path) as journal:
            assert journal.done.lines == {1}
            assert journal.done.num_torn_bytes == end - first
            journal.append(output(journal, 2))
        assert path.read_bytes() == whole


def test_rubbish_at_the_end_is_cut_and_in_the_middle_refused(path: Path) -> None:
    write(path, 1)
    good = path.read_bytes()
    path.write_bytes(good + b"\0\0\0\n")
    with opened(path) as journal:
        assert journal.done.lines == {1}
    path.write_bytes(b"\0\0\0\n" + good)
    with pytest.raises(JournalError, match="line 1 is damaged"):
        Journal(path, STAMP)
    assert path.read_bytes() == b"\0\0\0\n" + good


@pytest.mark.parametrize("content", [b'{"id": "something else"}\n', b'{"id": "batch_req_x_1"}\n'])
def test_other_files_are_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalError, match="another input"):
        Journal(path, STAMP)
    assert path.read_bytes() == content


def test_output_of_another_input_is_refused(path: Path) -> None:
    write(path, 1)
    with pytest.raises(JournalError, match="another input"):
        Journal(path, STAMP[::-1])


def test_one_writer_only(path: Path) -> None:
    with opened(path), pytest.raises(JournalError, match="another process"):
        Journal(path, STAMP)
    with opened(path):
        pass


def test_unusable_path_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(tmp_path / "no" / "folder", STAMP)


def test_full_disk_leaves_whole_lines_and_a_later_run_goes_on(path: Path) -> None:
    """A limit of the file's size stands for the disk: the kernel writes a part of the line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as journal:
        journal.append(output(journal, 1))
        one = len(path.read_bytes())
        resource.setrlimit(resource.RLIMIT_FSIZE, (one + one // 2, hard))
        try:
            for _ in range(2):
                with pytest.raises(JournalError, match="cannot be written"):
                    journal.append(output(journal, 2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.path.getsize(path) == one  # noqa: PTH202
        journal.append(output(journal, 2))
    with opened(path) as journal:
        assert journal.done.lines == {1, 2}


def test_threads_do_not_mix_their_lines(path: Path) -> None:
    with opened(path) as journal:

        def work(first: int) -> None:
            for number in range(first, first + 50):
                journal.append(output(journal, number))

        threads = [threading.Thread(target=work, args=(n * 50,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with opened(path) as journal:
        assert journal.done.lines == set(range(200))


def test_lines_reach_the_disk_about_every_second(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = 0.0, 0

    def fsync(file: int) -> None:
        nonlocal synced
        synced += 1

    monkeypatch.setattr(os, "fsync", fsync)
    journal = Journal(path, STAMP, clock=lambda: now)
    for now in (0.1, 0.5, 0.9, 1.1, 1.2, 2.0, 2.3):  # noqa: B007
        journal.append(output(journal, 1))
    journal.close()
    assert synced == 2
