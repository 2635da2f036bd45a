"""`oplog follow`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import click
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from oplog.archive.archive import Archive
from oplog.backoff import Backoff
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    accept_older_option,
    archive_argument,
    database_option,
    pass_invocation,
    standard_options,
    stop_within_option,
)
from oplog.cli.presentation import escape, show_count, show_quarantined
from oplog.cli.signals import run_until_signal
from oplog.cli.trust_option import expect_option
from oplog.errors import StoreUnavailableError
from oplog.facade import Oplog
from oplog.recovery.follow import FollowReport

_INTERVAL_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


@click.command()
@archive_argument
@database_option
@click.option("--once", is_flag=True, help="Apply what is new, and exit.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0, min_open=True),
    default=_INTERVAL_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Time between two reads of the archive.",
)
@click.option(
    "--name",
    default="archive",
    show_default=True,
    help="Name under which the database keeps its position.",
)
@stop_within_option()
@accept_older_option
@expect_option
@standard_options
@pass_invocation
def follow(
    invocation: Invocation, *, once: bool, interval: float, name: str, stop_within: float
) -> None:
    """Keep a second database up to date from ARCHIVE.

    An empty, migrated database is restored first. Nobody else may write into it. On SIGTERM or
    Ctrl-C the batch under way is finished; a second one ends at once, which loses nothing either,
    and so does --stop-within.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        follower = _Follower(log, archive, engine=engine, name=name, interval=interval)
        if once:
            report = follower.look()
        else:
            doing = f"following {escape(archive.url)}"
            report = run_until_signal(
                follower.run, stop=follower.stopped.set, doing=doing, stop_seconds=stop_within
            )
    document = report.to_json()
    invocation.emit(lambda: document, lambda: _show_follow(document))


def _show_follow(document: Mapping[str, Any]) -> Iterator[str]:
    entries = show_count(document["entries"], "entry", many="entries")
    anew = ", the database filled anew" if document["rebuilt"] else ""
    yield f"{entries} applied{anew}"
    yield (
        f"through sequence {document['sequence']} of generation {document['generation']}, "
        f"position {document['position']}"
    )
    yield from show_quarantined(document["quarantined"])


class _Follower:
    """Follows until it is stopped, and sums up what was done."""

    def __init__(
        self, log: Oplog, archive: Archive, *, engine: Engine, name: str, interval: float
    ) -> None:
        self.stopped = threading.Event()
        self._log = log
        self._archive = archive
        self._engine = engine
        self._name = name
        self._interval = interval
        self._backoff = Backoff(
            first_seconds=2 * interval,
            longest_seconds=max(_LONGEST_PAUSE_SECONDS, interval),
            jitter=0,
        )

    def look(self) -> FollowReport:
        """Apply what there is now."""
        with self._engine.connect() as connection:
            return self._log.follow(
                self._archive, connection, name=self._name, stop=self.stopped.is_set
            )

    def run(self) -> FollowReport:
        """Look again and again, until `stopped`. Once begun, it waits out what passes."""
        total = self.look()
        pause = self._interval
        failures = 0
        while not self.stopped.wait(pause):
            try:
                report = self.look()
            except (StoreUnavailableError, OperationalError) as error:
                failures += 1
                pause = self._backoff.pause_seconds(failures)
                say(f"warning: trying again in {pause:g} s: {escape(str(error).splitlines()[0])}")
                continue
            pause, failures = self._interval, 0
            total = replace(
                report,
                entries=total.entries + report.entries,
                rebuilt=total.rebuilt or report.rebuilt,
                quarantined=(*total.quarantined, *report.quarantined),
            )
        return total
