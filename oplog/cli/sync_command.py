"""Commands that put something into the archive: sync, snapshot.

Must not know how anything is published. The hard thing is a worker that runs for months: it ends
on a signal with what it was making, and says on stdout only what it did, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import click
from click.core import ParameterSource

from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    accept_older_option,
    archive_option,
    fork_option,
    pass_invocation,
    single_writer_option,
    standard_options,
)
from oplog.cli.presentation import escape, show_count, show_size
from oplog.cli.signals import run_until_signal
from oplog.facade.sync_worker import SyncWorker
from oplog.finding import Finding
from oplog.snapshot.policy import SnapshotPolicy
from oplog.sync.exporter import SyncReport
from oplog.sync.worker import INTERVAL_SECONDS

_CHECK_HOURS = 24.0


@click.command()
@click.option("--follow", is_flag=True, help="Go on publishing until SIGTERM or Ctrl-C.")
@fork_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0, min_open=True),
    default=INTERVAL_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="With --follow: between two looks when nothing wakes the worker.",
)
@click.option(
    "--snapshot-entries",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --follow: a snapshot after so many entries.",
)
@click.option(
    "--snapshot-hours",
    type=click.FloatRange(min=0, min_open=True),
    metavar="H",
    help="With --follow: a snapshot after so many hours.",
)
@click.option(
    "--check-hours",
    type=click.FloatRange(min=0),
    default=_CHECK_HOURS,
    show_default=True,
    metavar="H",
    help="With --follow: check and repair so often; 0 is never.",
)
@archive_option
@single_writer_option
@accept_older_option
@standard_options
@pass_invocation
def sync(invocation: Invocation, /, *, follow: bool, fork: str, **options: Any) -> int:
    """Publish what is new to the archive: once, or until stopped.

    Needs no keys, except for snapshots of a sealed log. One worker at a time publishes; others
    wait. On SIGTERM or Ctrl-C the head in the making is finished; a second one ends at once.
    """
    if not follow:
        _refuse_worker_options()
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine(pooled=follow) as engine:
        with engine.connect() as connection:
            log.store.require_current(connection)
        if follow:
            tally = _Tally()
            worker = SyncWorker(
                log,
                engine,
                archive,
                fork=fork,
                interval_seconds=options["interval"],
                snapshots=_read_policy(options["snapshot_entries"], options["snapshot_hours"]),
                check_hours=options["check_hours"] or None,
                on_pass=tally.add,
            )
            doing = f"publishing to {escape(archive.url)}"
            run_until_signal(worker.run, stop=worker.stop, doing=doing)
            report = tally.total
        else:
            report = log.sync(engine, archive, fork=fork)
    document = asdict(report)
    invocation.emit(lambda: document, lambda: show_sync(document))
    return show_problems(report.problems)


def _refuse_worker_options() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        told = parameter.help if isinstance(parameter, click.Option) else None
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and (told or "").startswith("With --follow"):
            raise click.UsageError(f"{parameter.opts[0]} is for --follow")


def _read_policy(entries: int | None, hours: float | None) -> SnapshotPolicy | None:
    """None, which takes no snapshots, unless one of both was asked for."""
    return None if entries is None and hours is None else SnapshotPolicy(entries, hours)


class _Tally:
    """What all passes of a worker did together."""

    def __init__(self) -> None:
        self.total = SyncReport(0, 0, 0, 0)

    def add(self, report: SyncReport) -> None:
        """One more pass."""
        total = self.total
        self.total = replace(
            report,
            entries=total.entries + report.entries,
            segments=total.segments + report.segments,
            bytes=total.bytes + report.bytes,
            lost=total.lost + report.lost,
        )


def show_sync(document: Mapping[str, Any]) -> Iterator[str]:
    """What a pass did, for people."""
    entries = show_count(document["entries"], "entry", many="entries")
    segments = show_count(document["segments"], "segment")
    if document["entries"]:
        yield f"{entries} published in {segments}, {show_size(document['bytes'])}"
    else:
        yield "nothing new"
    if document["lost"]:
        lost = show_count(document["lost"], "entry", many="entries")
        yield f"{lost} that the database lost left behind by a new generation"
    if document["sequence"]:
        yield (
            f"through sequence {document['sequence']} of generation {document['generation']}, "
            f"position {document['position']}"
        )


@click.command()
@click.option("--full", is_flag=True, help="Upload all rows again, building on no earlier one.")
@archive_option
@single_writer_option
@accept_older_option
@standard_options
@pass_invocation
def snapshot(invocation: Invocation, *, full: bool) -> int:
    """Publish what is new, and the tables at exactly that point.

    Uploads the rows that changed since the last snapshot; nothing, if none did. Needs the
    current key. Writers go on; nothing else is published meanwhile.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        with engine.connect() as connection:
            log.store.require_current(connection)
        report = log.snapshot(engine, archive, full=full)
    document = asdict(report)
    invocation.emit(lambda: document, lambda: _show_snapshot(document))
    return show_problems(report.problems)


def show_problems(problems: Sequence[Finding]) -> int:
    """Say what a restore would refuse, and give the exit code."""
    for one in problems:
        say(f"problem: {escape(one.where)}: {escape(one.message)}")
        say(f"hint: {escape(one.hint)}")
    return DIFFERENCES if problems else 0


def _show_snapshot(document: Mapping[str, Any]) -> Iterator[str]:
    rows = show_count(document["rows"], "row")
    if document["taken"]:
        yield (
            f"{rows} at sequence {document['sequence']}: {show_size(document['bytes'])} uploaded "
            f"of {show_size(document['total_bytes'])}"
        )
    else:
        yield f"nothing has changed since the snapshot at sequence {document['sequence']}"
