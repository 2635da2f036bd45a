"""The gather step of COMMIT: everything that the database has to be asked before building.

Runs with the application's row locks held. What to ask follows from the recorded work, which
is folded to net rows and grouped by aggregate here, with pure functions of other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.bulk_images import split_images
from oplog.capture.bulk_reading import BulkReader
from oplog.capture.grouping import group_effects
from oplog.capture.merge import measure, read_touched_rows, touch_rows
from oplog.capture.net_row import NetRow, fold_changes
from oplog.capture.readback import complete_rows
from oplog.capture.record import GatheredWork, RecordedWork
from oplog.errors import TicketConflictError
from oplog.postgres.namesake import Named
from oplog.store.guard_state import Image

ReadTickets = Callable[[Connection, list[str]], Mapping[str, int]]
"""Reads the versions of these aggregates."""


def gather_work(
    connection: Connection,
    work: RecordedWork,
    *,
    binding: Binding,
    images: Sequence[Image],
    named: Named,
    read_tickets: ReadTickets,
    strict: bool,
) -> GatheredWork:
    """The recorded work with the guards' images and with every value that was not known.

    Values of many rows that images alone tell of are read later, while they are encoded.

    With `strict`, recorded values are compared with what the database stored. Raises
    `CaptureMismatchError` where they differ, `NotCapturableError` for a row that may be hidden,
    and `TicketConflictError` for a ticket that does not hold any more.
    """
    changed = {change.bound.shape.type_name for change in work.changes}
    written = [binding.by_stored_name[name] for name in changed]
    written += [binding.find_relation(oid) for oid in {image.relation for image in images}]
    bulk, others = split_images(images, binding=binding, changed=changed)
    rows = _read_rows(connection, work, binding=binding, images=others, strict=strict)
    groups = group_effects(work, rows)
    idle = groups.idle.difference(*[rows.aggregates for rows in bulk])
    _check_idle(connection, work, idle=idle, read_tickets=read_tickets)
    tally = work.tally + measure(images)
    return GatheredWork(
        work,
        groups.effects,
        created=groups.created,
        tally=tally or None,
        known=binding.know(written),
        named=named,
        bulk=bulk,
        read_bulk=BulkReader(connection, binding.by_stored_name),
    )


def _read_rows(
    connection: Connection,
    work: RecordedWork,
    *,
    binding: Binding,
    images: Sequence[Image],
    strict: bool,
) -> list[NetRow]:
    rows = fold_changes(work.changes)
    if not images:
        complete_rows(connection, rows, types=binding.by_stored_name, strict=strict)
        return rows
    touched = touch_rows(images, binding=binding, changes=work.changes)
    rows = [row for row in rows if (row.bound.shape.type_name, row.key) not in touched]
    complete_rows(connection, rows, types=binding.by_stored_name, strict=strict)
    return rows + read_touched_rows(connection, touched)


def _check_idle(
    connection: Connection,
    work: RecordedWork,
    *,
    idle: frozenset[str],
    read_tickets: ReadTickets,
) -> None:
    """Raise `TicketConflictError` unless the tickets of idle aggregates hold.

    No record redeems them. Of two transactions that read 0 and wrote 1, the second changes
    nothing; unless its ticket is compared here, it is a lost update.
    """
    taken = {name: work.tickets[name].version for name in idle if name in work.tickets}
    if not taken:
        return
    versions = read_tickets(connection, sorted(taken))
    stale = sorted(name for name in taken if versions.get(name, 0) != taken[name])
    if stale:
        raise TicketConflictError(
            f"aggregate {stale[0]!r} was changed after its ticket was taken",
            hint="run the whole transaction again",
            aggregates=stale,
        )
