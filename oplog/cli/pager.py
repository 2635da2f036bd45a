"""Long output in the terminal's pager.

The pager is that of `PAGER`, else `less` or `more`. `less` is told to end at once where all fits
on a screen, and to pass colours through, unless `LESS` says how it is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import click

_LESS = "FRX"
"""End if it fits, pass colours through, leave the text on the screen."""


def show_in_pager(lines: Iterable[str]) -> None:
    """Show lines one after the other; who leaves the pager early is not told of an error."""
    os.environ.setdefault("LESS", _LESS)
    # The lines have colours only where they are wanted: they are for every pager to show.
    click.echo_via_pager((f"{line}\n" for line in lines), color=True)
