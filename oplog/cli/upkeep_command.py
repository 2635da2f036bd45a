"""Commands that keep an archive sound: check, resync, collect, pin, unpin, pins.

Must not judge: what is a problem and what is garbage is decided by the library. The hard thing is
that `collect` deletes: what went is named, object by object, before or after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click

from oplog.cli.argument import DURATION, SHARE
from oplog.cli.exit_code import DIFFERENCES, FAILED
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    accept_older_option,
    archive_option,
    database_option,
    pass_invocation,
    single_writer_option,
    standard_options,
)
from oplog.cli.presentation import escape, show_count, show_size
from oplog.cli.progress import show_work
from oplog.upkeep.garbage import GRACE_SECONDS
from oplog.upkeep.pin import Pin
from oplog.upkeep.retention import Retention


@click.command()
@database_option
@click.option(
    "--alone", is_flag=True, help="Look at the archive only, also if a database is named."
)
@click.option(
    "--sample",
    type=SHARE,
    help="Read only that part of segments and chunks, such as 5%; of the others their presence.",
)
@archive_option
@standard_options
@pass_invocation
def check(invocation: Invocation, *, alone: bool, sample: float | None) -> int:
    """Verify every object of the archive, and compare it with the log.

    Needs no keys. Without a database, or with --alone, the archive is verified by itself.
    Writes nothing. Exit code 3 when something is wrong that does harm.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with show_work("checking") as progress:
        if alone or not invocation.database:
            report = log.check(archive, sample=sample, progress=progress)
        else:
            with invocation.open_engine() as engine:
                report = log.check(archive, engine, sample=sample, progress=progress)
    document = {"ok": report.ok, "compared": not alone and bool(invocation.database)}
    document |= asdict(report)
    invocation.emit(lambda: document, lambda: _show_check(document))
    return 0 if report.ok else DIFFERENCES


def _show_check(document: Mapping[str, Any]) -> Iterator[str]:
    yield from _show_problems(document["problems"])
    with_what = "compared with the log" if document["compared"] else "not compared with a database"
    yield (
        f"{'sound' if document['ok'] else 'DAMAGED'}: {show_count(document['objects'], 'object')}, "
        f"{show_size(document['bytes'])} read, through sequence {document['sequence']} of "
        f"generation {document['generation']}, {with_what}"
    )


def _show_problems(problems: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for problem in problems:
        harmless = ", harmless" if problem["harmless"] else ""
        yield f"{problem['what']}{harmless}: {escape(problem['path'] or 'database')}"
        yield f"  {escape(problem['message'])}"


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be written.")
@archive_option
@single_writer_option
@accept_older_option
@standard_options
@pass_invocation
def resync(invocation: Invocation, *, dry_run: bool) -> int:
    """Check the archive, and repair it from the database.

    Writes again what is missing or damaged, content first, head last; deletes nothing. Exit
    code 3 when something is left that cannot be made again.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.resync(engine, archive, dry_run=dry_run)
    document = {"ok": report.ok, **asdict(report)}
    invocation.emit(lambda: document, lambda: _show_resync(document))
    if dry_run:
        say("nothing was written: this was a dry run")
    return 0 if report.ok else DIFFERENCES


def _show_resync(document: Mapping[str, Any]) -> Iterator[str]:
    for path in document["repaired"]:
        yield f"repaired: {escape(path)}"
    for path in document["dropped"]:
        yield f"dropped: {escape(path)}"
    if document["left"]:
        yield "left:"
        yield from _show_problems(document["left"])
    found = show_count(len(document["found"]), "problem")
    yield f"{found} found, {show_count(len(document['repaired']), 'object')} repaired"


@click.command()
@click.option(
    "--keep-snapshots", type=click.IntRange(min=1), metavar="N", help="Keep the newest ones."
)
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0, min_open=True),
    metavar="D",
    help="Keep snapshots that are not older.",
)
@click.option(
    "--drop-log",
    is_flag=True,
    help="Do not keep the log from before the oldest snapshot that is kept.",
)
@click.option(
    "--grace",
    type=DURATION,
    default=timedelta(seconds=GRACE_SECONDS),
    show_default=f"{GRACE_SECONDS / 3600:g}h",
    help="For readers of an older state of the archive.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@archive_option
@single_writer_option
@standard_options
@pass_invocation
def collect(
    invocation: Invocation,
    *,
    keep_snapshots: int | None,
    keep_days: float | None,
    drop_log: bool,
    grace: timedelta,
    dry_run: bool,
) -> int:
    """Delete from the archive what nothing needs.

    Without --keep-snapshots and --keep-days all snapshots are kept, and only what was left behind
    by workers that died is deleted. The newest snapshot is always kept, and so is what a pin
    holds. Exit code 1 when the store refused to delete.
    """
    if drop_log and keep_snapshots is None and keep_days is None:
        raise click.UsageError("--drop-log needs --keep-snapshots or --keep-days")
    retention = Retention(keep_snapshots, keep_days, keep_log=not drop_log)
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.collect(
            engine,
            archive,
            retention=retention,
            grace_seconds=grace.total_seconds(),
            dry_run=dry_run,
        )
    document = asdict(report)
    invocation.emit(lambda: document, lambda: _show_collect(document))
    for note in report.notes:
        say(f"note: {escape(note)}")
    if dry_run:
        say("nothing was deleted: this was a dry run")
    if report.refused:
        say(f"warning: {escape(report.refused)}")
    return FAILED if report.refused else 0


def _show_collect(document: Mapping[str, Any]) -> Iterator[str]:
    yield from map(escape, document["paths"])
    verb = "to be deleted" if document["dry_run"] else "deleted"
    snapshots = show_count(document["snapshots"], "snapshot")
    yield (
        f"{show_count(len(document['paths']), 'object')} {verb}, {show_size(document['bytes'])}; "
        f"{snapshots} not kept; the log begins at sequence {document['first_sequence']}"
    )


@click.command()
@click.argument("name")
@archive_option
@single_writer_option
@standard_options
@pass_invocation
def pin(invocation: Invocation, *, name: str) -> None:
    """Keep all that the archive holds now, under NAME, until unpin."""
    log, archive = invocation.load_log(), invocation.open_archive()
    document = asdict(log.pin(archive, name))
    invocation.emit(lambda: document, lambda: [_show_pin(document)])


@click.command()
@click.argument("name")
@archive_option
@standard_options
@pass_invocation
def unpin(invocation: Invocation, *, name: str) -> None:
    """Keep it no longer; collect deletes what nothing else needs."""
    log, archive = invocation.load_log(), invocation.open_archive()
    _emit_pins(invocation, log.unpin(archive, name))


@click.command()
@archive_option
@standard_options
@pass_invocation
def pins(invocation: Invocation) -> None:
    """What is kept by name."""
    log, archive = invocation.load_log(), invocation.open_archive()
    _emit_pins(invocation, log.list_pins(archive))


def _emit_pins(invocation: Invocation, found: Sequence[Pin]) -> None:
    documents = [asdict(one) for one in found]
    invocation.emit(lambda: {"pins": documents}, lambda: map(_show_pin, documents))


def _show_pin(document: Mapping[str, Any]) -> str:
    return f"{escape(document['name'])}  head {document['head']}  {escape(document['path'])}"
