"""Text for people about what a pass of publishing did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import say
from oplog.cli.presentation import escape, show_count, show_size
from oplog.finding import Finding


def show_sync(document: Mapping[str, Any]) -> Iterator[str]:
    """What a pass did, for people."""
    entries = show_count(document["entries"], "entry", many="entries")
    segments = show_count(document["segments"], "segment")
    if document["entries"]:
        yield f"{entries} published in {segments}, {show_size(document['bytes'])}"
    else:
        yield "nothing new"
    if document["lost"]:
        lost = show_count(document["lost"], "record")
        yield f"{lost} that the database lost left behind by a new generation"
    if document["sequence"]:
        yield (
            f"through sequence {document['sequence']} of generation {document['generation']}, "
            f"position {document['position']}"
        )
        yield f"expect at least {document['expect_at_least']}"


def report_problems(problems: Sequence[Finding]) -> int:
    """Say what a restore would refuse, and give the exit code."""
    for one in problems:
        say(f"problem: {escape(one.where)}: {escape(one.message)}")
        say(f"hint: {escape(one.hint)}")
    return DIFFERENCES if problems else 0
