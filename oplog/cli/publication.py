"""Text for people about what a pass of publishing did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import say
from oplog.cli.presentation import escape, show_count, show_size
from oplog.finding import Finding
from oplog.json_value import format_time
from oplog.sync.exporter import SyncReport


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


def describe_minute(before: SyncReport, now: SyncReport) -> str:
    """What a worker published between two totals of its passes, on one line."""
    entries, segments = now.entries - before.entries, now.segments - before.segments
    done = "nothing new"
    if entries:
        done = (
            f"{show_count(entries, 'entry', many='entries')} in {show_count(segments, 'segment')}, "
            f"{show_size(now.bytes - before.bytes)}"
        )
    at = format_time(datetime.now(UTC))
    return f"{at}  {done}; published through sequence {now.sequence}, position {now.position}"


def report_problems(problems: Sequence[Finding]) -> int:
    """Say what a restore would refuse, and give the exit code."""
    for one in problems:
        say(f"problem: {escape(one.where)}: {escape(one.message)}")
        say(f"hint: {escape(one.hint)}")
    return DIFFERENCES if problems else 0
