"""`oplog sync`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
from click.core import ParameterSource

from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    accept_older_option,
    archive_option,
    fork_option,
    pass_invocation,
    single_writer_option,
    standard_options,
    stop_within_option,
)
from oplog.cli.presentation import escape
from oplog.cli.publication import describe_minute, report_problems, show_sync
from oplog.cli.signals import run_until_signal
from oplog.cli.trust_option import replace_publisher_option, unsigned_option
from oplog.facade.sync_worker import SyncWorker
from oplog.snapshot.policy import SnapshotPolicy
from oplog.sync.exporter import SyncReport
from oplog.sync.worker import INTERVAL_SECONDS

_CHECK_HOURS = 24.0
_TELL_SECONDS = 60.0


@click.command()
@click.option("--follow", is_flag=True, help="Keep publishing until SIGTERM or Ctrl-C.")
@fork_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0, min_open=True),
    default=INTERVAL_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="With --follow: time between two passes when nothing wakes the worker.",
)
@click.option(
    "--snapshot-records",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --follow: take a snapshot after N records.",
)
@click.option(
    "--snapshot-hours",
    type=click.FloatRange(min=0, min_open=True),
    metavar="H",
    help="With --follow: take a snapshot after H hours.",
)
@click.option(
    "--check-hours",
    type=click.FloatRange(min=0),
    default=_CHECK_HOURS,
    show_default=True,
    metavar="H",
    help="With --follow: check and repair every H hours; 0 is never.",
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="With --follow: say once a minute what was published, and how far.",
)
@stop_within_option("With --follow")
@archive_option
@single_writer_option
@accept_older_option
@unsigned_option
@replace_publisher_option
@standard_options
@pass_invocation
def sync(invocation: Invocation, /, *, follow: bool, fork: str, **options: Any) -> int:
    """Publish what is new to the archive: once, or until stopped.

    Needs no keys, except for snapshots of a sealed log. One worker at a time publishes; others
    wait. On SIGTERM or Ctrl-C the head in the making is finished; a second one ends at once, and so
    does --stop-within.
    """
    if not follow:
        _refuse_worker_options()
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine(pooled=follow) as engine:
        if follow:
            log.require_log(engine)
            tally = Tally(say if options["verbose"] else None)
            worker = SyncWorker(
                log,
                engine,
                archive,
                fork=fork,
                interval_seconds=options["interval"],
                snapshots=_read_policy(options["snapshot_records"], options["snapshot_hours"]),
                check_hours=options["check_hours"] or None,
                on_pass=tally.add,
            )
            doing = f"publishing to {escape(archive.url)}"
            run_until_signal(
                worker.run, stop=worker.stop, doing=doing, stop_seconds=options["stop_within"]
            )
            report = tally.total
        else:
            report = log.sync(engine, archive, fork=fork)
    document = report.to_json()
    invocation.emit(lambda: document, lambda: show_sync(document))
    return report_problems(report.problems)


def _refuse_worker_options() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        told = parameter.help if isinstance(parameter, click.Option) else None
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and (told or "").startswith("With --follow"):
            raise click.UsageError(f"{parameter.opts[0]} is for --follow")


def _read_policy(records: int | None, hours: float | None) -> SnapshotPolicy | None:
    """None, which takes no snapshots, unless one of both was asked for."""
    return None if records is None and hours is None else SnapshotPolicy(records, hours)


class Tally:
    """What all passes of a worker did together."""

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        """`tell` gets a line a minute."""
        self.total = SyncReport(0, 0, 0, 0)
        self._tell = tell
        self._told = self.total
        self._told_at = time.monotonic()

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
        if self._tell is not None and time.monotonic() - self._told_at >= _TELL_SECONDS:
            self._tell(describe_minute(self._told, self.total))
            self._told, self._told_at = self.total, time.monotonic()
