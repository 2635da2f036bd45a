"""What commands print to a terminal: progress on a narrow one, and chunks of adopted rows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from oplog import Change, LoggedEntry, Operation, OpType
from oplog.cli.presentation import Look, show_change, show_entry
from oplog.cli.progress import show_progress, show_work
from oplog.cli.sync_command import Tally
from oplog.sync.exporter import SyncReport

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


PLAIN = Look()


def test_a_chunk_of_adopted_rows_is_one_line() -> None:
    lines = list(show_entry(make_entry(25_000, "adopted/account"), look=PLAIN))
    assert lines[1:] == ["  adopted: account", "  create account 25000 rows, id=1 to id=25000"]
    # A few rows are shown as ever, and so is what an application did in one transaction.
    assert len(list(show_entry(make_entry(3, "adopted/account"), look=PLAIN))) == 2 + 3 * 3
    assert len(list(show_entry(make_entry(20, "ledger"), look=PLAIN))) == 2 + 20 * 3


def test_long_entries_are_cut_unless_all_is_asked_for() -> None:
    entry = make_entry(30, "ledger")
    lines = list(show_entry(entry, look=PLAIN))
    assert len(lines) == 2 + 20 * 3 + 1
    assert lines[-1] == "  … 10 more operations (--full shows all)"
    assert len(list(show_entry(entry, look=Look(full=True)))) == 2 + 30 * 3


def test_long_values_are_cut_unless_all_is_asked_for() -> None:
    change = Change(1, OpType.UPDATE, {"note": "y" * 1000}, {}, datetime.now(UTC))
    cut = list(show_change(change, look=PLAIN))[-1]
    assert cut.endswith("y… (1002 characters)")
    assert len(cut) < 240
    assert "y" * 1000 in list(show_change(change, look=Look(full=True)))[-1]
    assert list(show_change(change, look=Look(redact=True)))[-1] == "  note = ***"


def test_colours_are_of_kinds_and_never_of_what_was_stored() -> None:
    entry = make_entry(1, "ledger\x1b[31m")
    plain, coloured = (
        "\n".join(show_entry(entry, look=look)) for look in (PLAIN, Look(colour=True))
    )
    assert CONTROL.sub("", coloured) == plain
    assert "\x1b" not in plain
    assert "\x1b[32mcreate\x1b[0m" in coloured


SHOW = """
from datetime import UTC, datetime
from oplog import Change, OpType
from oplog.cli.invocation import Invocation
from oplog.cli.presentation import show_change
change = Change(1, OpType.DELETE, {"note": "y"}, {}, datetime(2026, 1, 1, tzinfo=UTC))
run = Invocation()
look = run.look(redact=False, full=False)
run.emit(lambda: 1, lambda: (l for _ in range(5000) for l in show_change(change, look=look)),
         paged=True)
print("ended")
"""


def show_on_terminal(**environment: str) -> tuple[int, str]:
    """What a terminal shows that 10,000 lines are printed to."""
    master, slave = pty.openpty()
    base = {k: v for k, v in os.environ.items() if k not in {"PAGER", "LESS", "NO_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**base, "TERM": "xterm", **environment},
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # what a terminal says once nobody has it open
        while read := os.read(master, 1 << 16):
            shown += read
    os.close(master)
    return process.wait(), shown.decode()


def test_a_terminal_gets_all_lines_in_colour_through_its_pager() -> None:
    code, shown = show_on_terminal(PAGER="cat")
    assert code == 0
    assert shown.count("note = 'y'") == 5000
    assert "\x1b[" in shown
    code, shown = show_on_terminal(PAGER="cat", NO_COLOR="1")
    assert shown.count("note = 'y'") == 5000
    assert "\x1b[" not in shown


def test_a_pager_that_is_left_early_is_no_failure() -> None:
    code, shown = show_on_terminal(PAGER="head -n 2")
    assert code == 0
    assert shown.count("note = 'y'") == 1
    assert shown.rstrip().endswith("ended")


def test_a_pipe_gets_plain_lines() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert done.stdout.count("note = 'y'") == 5000
    assert "\x1b" not in done.stdout


def test_a_worker_that_is_asked_says_once_a_minute_what_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("oplog.cli.sync_command.time.monotonic", lambda: clock[0])
    said: list[str] = []
    tally, silent = Tally(said.append), Tally(None)
    for second in range(1, 151):
        clock[0] = float(second)
        for one in (tally, silent):
            one.add(SyncReport(2, 1, 512, position=second, sequence=second))
    assert [line.partition("  ")[2] for line in said] == [
        "120 entries in 60 segments, 30.0 KiB; published through sequence 60, position 60",
        "120 entries in 60 segments, 30.0 KiB; published through sequence 120, position 120",
    ]
    assert tally.total == silent.total
    assert tally.total.entries == 300


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes(shell: str) -> None:
    program = [sys.executable, "-m", "oplog"]
    complete = {"_OPLOG_COMPLETE": f"{shell}_complete", "COMP_WORDS": "oplog ver"}
    complete["COMP_CWORD"] = "ver" if shell == "fish" else "1"
    done = subprocess.run(
        program, env={**os.environ, **complete}, capture_output=True, text=True, check=True
    )
    assert "verify" in done.stdout
