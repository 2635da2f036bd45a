"""What commands print to a terminal: progress on a narrow one, and chunks of adopted rows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from oplog import LoggedEntry, Operation
from oplog.cli.presentation import show_entry
from oplog.cli.progress import show_progress, show_work

pytestmark = pytest.mark.unit

CONTROL = re.compile(r"\x1b\[\??[0-9;]*[A-Za-z]")


@contextmanager
def open_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Stderr is a terminal of so many columns inside; what it shows is read from the value."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield master
    os.close(master)


def read_lines(master: int, last: str) -> list[str]:
    """Lines, and what lines were overwritten with, through the one that has `last`."""
    sys.stderr.flush()
    text = ""
    while last not in text or not text.endswith("\n"):
        # A terminal gives what it has by now.
        text += os.read(master, 1 << 20).decode()
    return [line for line in re.split(r"[\r\n]+", CONTROL.sub("", text)) if line.strip()]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_progress_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_terminal(columns, monkeypatch) as terminal:
        with show_progress("adopting") as progress:
            assert progress is not None
            for done in (1, 40_000, 999_999, 1_000_000):
                progress(done, 1_000_000)
        with show_work("checking a very large archive in a bucket") as work:
            assert work is not None
            work(1_000_000, 10**12)
        lines = read_lines(terminal, "checking")
    assert any("100%" in line for line in lines)
    assert [line for line in lines if len(line) >= columns] == []


def make_entry(rows: int, aggregate: str) -> LoggedEntry:
    operations = tuple(
        Operation.create("account", key={"id": n}, fields={"id": n, "note": "x"})
        for n in range(1, rows + 1)
    )
    return LoggedEntry(
        position=7,
        sequence=None,
        aggregate=aggregate,
        version=1,
        operations=operations,
        metadata={"adopted": ["account"]},
        transaction_id=1,
        entry_id=uuid4(),
        entry_hash=b"",
        recorded_at=datetime.now(UTC),
    )


def test_a_chunk_of_adopted_rows_is_one_line() -> None:
    lines = list(show_entry(make_entry(25_000, "adopted/account"), redact=False))
    assert lines[1:] == ["  adopted: account", "  create account 25000 rows, id=1 to id=25000"]
    # A few rows are shown as ever, and so is what an application did in one transaction.
    assert len(list(show_entry(make_entry(3, "adopted/account"), redact=False))) == 2 + 3 * 3
    assert len(list(show_entry(make_entry(30, "ledger"), redact=False))) == 2 + 30 * 3
