"""Tickets of a restored log: made from its entries and compared with a snapshot's tickets.

If the archive no longer has the beginning of the log, the snapshot's tickets are the only record
of what the first entries follow.
"""

from __future__ import annotations

from collections.abc import Sequence

from oplog.errors import ChainBrokenError
from oplog.postgres.work import Driver
from oplog.snapshot.base import SnapshotReader
from oplog.store import BrokenLink
from oplog.store.intake import RestorationStore, print_ticket


def restore_tickets(
    driver: Driver, store: RestorationStore, *, snapshot: SnapshotReader | None
) -> None:
    """Write the tickets of restored entries, and a snapshot's tickets of aggregates without any.

    `ChainBrokenError` if entries do not follow one another or the snapshot's ticket, or if the
    snapshot has a later ticket.
    """
    connection = driver.connection
    stage = store.stage_tickets(connection)
    if snapshot is not None:
        driver.copy(
            f"COPY {stage} FROM STDIN",
            (
                print_ticket(ticket.aggregate, ticket.version, head_hash=ticket.head_hash)
                for ticket in snapshot.tickets()
            ),
        )
    broken = store.list_broken_links(connection)
    if broken:
        raise _report_broken(broken)
    store.write_tickets(connection)
    lost = store.list_lost_tickets(connection)
    if lost:
        raise ChainBrokenError(
            f"entries of {', '.join(map(repr, lost))} are missing: the snapshot knows later ones",
            hint="the log or the snapshot was altered",
        )
    store.keep_tickets(connection)


def _report_broken(broken: Sequence[BrokenLink]) -> ChainBrokenError:
    first = broken[0]
    return ChainBrokenError(
        f"the chains of the log that is restored are broken, {len(broken)} times at least: "
        f"aggregate {first.aggregate!r} version {first.version} (position {first.position}): "
        f"{first.reason}",
        hint="it was altered, or put together from two logs; restore an earlier position",
    )
