"""Progress bars on stderr. Without a terminal there is none, so that pipes and logs stay clean."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import click

from oplog.cli.presentation import show_count, show_size

Progress = Callable[[int, int], None]
"""Takes the position reached and the last one."""
_TOLD = 100
"""Every so many records of a scan are told."""
_WIDEST = 36
"""Most columns of a bar."""
_USUAL = 80
"""Columns of a terminal that does not say."""
_BESIDE = len("  []  100%  10d 00:00:00") + 1
"""Columns beside a bar and its label: percentage, time, and one that stays free."""


@contextlib.contextmanager
def show_progress(label: str) -> Iterator[Progress | None]:
    """A bar on stderr while the block runs; None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    # On a narrow terminal a longer line would begin a new one with each step.
    width = max(1, min(_WIDEST, _measure_terminal() - len(label) - _BESIDE))
    # How long the way is becomes known with the first step on it.
    with click.progressbar(
        length=1, label=label, file=sys.stderr, show_eta=True, width=width
    ) as bar:

        def advance(position: int, last: int) -> None:
            bar.length = max(last, 1)
            bar.update(min(position, bar.length) - bar.pos)

        yield advance


@contextlib.contextmanager
def show_work(label: str) -> Iterator[Progress | None]:
    """What was done so far, on one line of stderr, where the end is not known; else as above.

    Its two numbers are objects and bytes.
    """
    if not sys.stderr.isatty():
        yield None
        return

    def tell(objects: int, size: int) -> None:
        line = f"{label}  {show_count(objects, 'object')}, {show_size(size)}"
        sys.stderr.write(f"\r{line[: _measure_terminal() - 1]}\x1b[K")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\n")


def _measure_terminal() -> int:
    """Columns of the terminal that stderr is; stdout may be another one, or a file."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL
    except (OSError, ValueError):
        return _USUAL


@contextlib.contextmanager
def show_scan(label: str) -> Iterator[Progress | None]:
    """How many records were opened, on one line of stderr; None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return

    def tell(records: int, position: int) -> None:
        if records % _TOLD == 0:
            line = f"{label}  {show_count(records, 'record')}, position {position}"
            sys.stderr.write(f"\r{line[: _measure_terminal() - 1]}\x1b[K")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\r\x1b[K")
