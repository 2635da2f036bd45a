"""Progress bars on stderr. Without a terminal there is none, so that pipes and logs stay clean."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

from oplog.cli.presentation import show_count, show_size

Progress = Callable[[int, int], None]
"""Takes the position reached and the last one."""


@contextlib.contextmanager
def show_progress(label: str) -> Iterator[Progress | None]:
    """A bar on stderr while the block runs; None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    # How long the way is becomes known with the first step on it.
    with click.progressbar(length=1, label=label, file=sys.stderr, show_eta=True) as bar:

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
        sys.stderr.write(f"\r{label}  {show_count(objects, 'object')}, {show_size(size)}\x1b[K")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\n")
