"""`oplog undo`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import click
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

from oplog.archive.archive import Archive
from oplog.cli.actor import actor_option
from oplog.cli.argument import PLACE, POSITIONS, parse_metadata
from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, reach_option, standard_options
from oplog.cli.presentation import escape, show_count
from oplog.facade import Oplog
from oplog.receipt import Receipt
from oplog.undo.undo_conflict import CHOICES
from oplog.undo.undo_plan import UndoPlan


@click.command()
@click.option(
    "--record",
    "record_ids",
    type=click.UUID,
    metavar="ID",
    multiple=True,
    help="Undo this record; may be repeated.",
)
@click.option(
    "--position",
    "positions",
    type=POSITIONS,
    multiple=True,
    help="Undo the record at this position; may be repeated.",
)
@click.option(
    "--aggregate",
    "aggregates",
    metavar="NAME",
    multiple=True,
    help="Undo only what was done to this aggregate; may be repeated.",
)
@click.option(
    "--metadata",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Undo transactions with this metadata; may be repeated, all must match.",
)
@click.option("--after", type=PLACE, help="Undo only what was recorded after this place.")
@click.option("--through", type=PLACE, help="Undo only what was recorded up to this place.")
@click.option(
    "--on-conflict",
    type=click.Choice(CHOICES),
    default="fail",
    show_default=True,
    help="What to do where others have changed the same since.",
)
@click.option("--reason", metavar="TEXT", help="Why; it is in the metadata of the new record.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and write nothing.")
@actor_option
@reach_option
@standard_options
@pass_invocation
def undo(invocation: Invocation, /, **options: Any) -> int:
    """Take back what transactions did, as a new one.

    Columns that only they changed are set back, rows that they made are deleted, and rows that they
    deleted are made again. Where others have changed the same since, that is a conflict, and
    --on-conflict says what becomes of it. A time without a zone is UTC. Exit code 3 when there are
    conflicts without a choice: they are shown, and nothing is written.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(options["reach"])
    with invocation.open_engine() as engine:
        plan = log.plan_undo(
            engine,
            records=_list_records(options["positions"], options["record_ids"]),
            aggregate=options["aggregates"],
            metadata=parse_metadata(options["pairs"]),
            after=options["after"],
            through=options["through"],
            on_conflict=options["on_conflict"],
            archive=archive,
        )
        done: list[Receipt] | None = None
        if not options["dry_run"] and not plan.undecided:
            done = _carry_out(log, engine, plan, reason=options["reason"], archive=archive)
    document = {
        **plan.to_json(),
        "done": done is not None,
        "receipts": [receipt.to_json() for receipt in done or ()],
    }
    invocation.emit(lambda: document, lambda: _show(plan, done))
    if options["dry_run"]:
        say("nothing was written: this was a dry run")
    elif plan.undecided:
        say("nothing was written: choose what becomes of conflicts with --on-conflict")
    return DIFFERENCES if plan.undecided else 0


def _list_records(
    positions: Sequence[range], record_ids: Sequence[UUID]
) -> list[int | UUID] | None:
    found: list[int | UUID] = [*record_ids]
    for one in positions:
        found += one
    return found or None


def _carry_out(
    log: Oplog, engine: Engine, plan: UndoPlan, *, reason: str | None, archive: Archive | None
) -> list[Receipt]:
    sessions = sessionmaker(engine)
    log.attach(sessions)
    try:
        return log.undo(sessions, plan, reason=reason, archive=archive)
    finally:
        log.detach(sessions)


def _show(plan: UndoPlan, done: Sequence[Receipt] | None) -> Iterator[str]:
    for line in plan.preview().split("\n"):
        yield escape(line)
    if done:
        yield f"done: {show_count(len(done), 'aggregate')} in record {done[0].record_id}"
