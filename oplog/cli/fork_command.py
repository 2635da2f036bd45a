"""`oplog fork inspect`, `replay-lost` and `abandon`: commands for the day after a failover.

The operator decides about lost records by choosing a command. `inspect` writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from oplog.cli.actor import actor_option
from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    archive_option,
    pass_invocation,
    single_writer_option,
    standard_options,
)
from oplog.cli.presentation import escape, show_count
from oplog.cli.publication import show_sync
from oplog.facade import ForkReport


@click.group()
@standard_options
def fork() -> None:
    """Handle records that were published and that the database has lost."""


@fork.command()
@archive_option
@standard_options
@pass_invocation
def inspect(invocation: Invocation) -> int:
    """List the published records that the database does not have.

    Writes nothing. Exit code 3 when there are any.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.inspect_fork(engine, archive)
    invocation.emit(report.to_json, lambda: _show(report))
    if report.forked:
        say("hint: fork replay-lost does them again; fork abandon goes on without them")
    return DIFFERENCES if report.forked else 0


def _show(report: ForkReport) -> Iterator[str]:
    for one in report.lost:
        other = ", the database has another one there" if one.stored_hash else ""
        yield (
            f"lost: sequence {one.sequence}, position {one.position}, "
            f"{escape(one.aggregate)} version {one.version}{other}"
        )
    untold = report.lost_count - len(report.lost)
    if untold > 0:
        yield f"and {untold} more"
    for branch in report.branches:
        yield (
            f"lost branch: generation {branch.generation}, sequences {branch.sequence + 1} to "
            f"{branch.last}"
        )
    if report.forked:
        lost = show_count(report.lost_count, "record")
        yield (
            f"FORKED: the database lost {lost} after sequence {report.common_sequence}; the "
            f"archive is at sequence {report.sequence} of generation {report.generation}"
        )
    else:
        yield f"no fork: generation {report.generation} goes on from sequence {report.sequence}"


@fork.command(name="replay-lost")
@click.option(
    "--generation",
    type=click.IntRange(min=0),
    metavar="N",
    help="Generation that lost records; the default is the newest.",
)
@click.option("--dry-run", is_flag=True, help="Count the transactions, and write nothing.")
@click.option(
    "--overwrite",
    type=click.IntRange(min=1),
    metavar="SEQUENCE",
    multiple=True,
    help="Write this one over what was written since; may be given several times.",
)
@archive_option
@single_writer_option
@actor_option
@standard_options
@pass_invocation
def replay_lost(
    invocation: Invocation, *, generation: int | None, dry_run: bool, overwrite: tuple[int, ...]
) -> int:
    """Write lost transactions again, as new ones.

    Each is logged with the metadata it had, and done at most once, however often this is run.
    A fork that is not published yet is published first. Needs the keys. Exit code 3 when one
    does not fit the current rows: it is reported, with what was written there since, when and
    by whom, and not written.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.replay_lost(
            engine, archive, generation=generation, dry_run=dry_run, overwrite=overwrite
        )
    document = {"dry_run": dry_run, **report.to_json()}
    invocation.emit(lambda: document, lambda: _show_replay(document))
    if dry_run:
        say("nothing was written: this was a dry run")
    return DIFFERENCES if report.refused else 0


def _show_replay(document: Mapping[str, Any]) -> Iterator[str]:
    for refused in document["refused"]:
        yield f"refused: sequence {refused['sequence']}: {escape(refused['reason'])}"
        yield from map(_show_conflict, refused["conflicts"])
    transactions = show_count(document["replayed"], "transaction")
    verb = "to be done again" if document["dry_run"] else "done again"
    yield f"{transactions} of generation {document['generation']} {verb}"


def _show_conflict(conflict: Mapping[str, Any]) -> str:
    columns = [f"{name}.{one}" for name, found in conflict["columns"].items() for one in found]
    by = [f"{key}={value}" for key, found in conflict["metadata"].items() for value in found]
    return escape(
        f"  {conflict['aggregate']} version {conflict['version']}, {conflict['recorded_at']}"
        f"{', ' if by else ''}{', '.join(by)}: wrote {', '.join(columns) or 'a deletion'}"
    )


@fork.command()
@archive_option
@single_writer_option
@standard_options
@pass_invocation
def abandon(invocation: Invocation) -> None:
    """Continue without the lost records, in a new generation.

    The lost branch stays in the archive, readable, and can be done again later.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.sync(engine, archive, fork="fork")
    document = report.to_json()
    invocation.emit(lambda: document, lambda: show_sync(document))


@fork.command()
@click.option(
    "--through",
    type=click.IntRange(min=0),
    metavar="GENERATION",
    required=True,
    help="Newest generation whose lost branch is given up; all before it are too.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be given up, and write nothing.")
@archive_option
@single_writer_option
@standard_options
@pass_invocation
def retire(invocation: Invocation, *, through: int, dry_run: bool) -> None:
    """Give up old lost branches: their records can then be neither read nor replayed.

    An archive keeps at most 100, and publishes no fork beyond that. `collect` deletes later what
    only they had.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.retire_branches(engine, archive, through=through, dry_run=dry_run)
    document = report.to_json()
    invocation.emit(lambda: document, lambda: _show_retirement(document))
    if dry_run:
        say("nothing was written: this was a dry run")


def _show_retirement(document: Mapping[str, Any]) -> Iterator[str]:
    generations = ", ".join(map(str, document["generations"]))
    records = show_count(document["records"], "record")
    yield f"retired: lost branches of generations {generations}, with {records}"
    yield f"{document['kept']} left"
