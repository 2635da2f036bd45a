"""Heads of a restored log: its records are compared with a snapshot's heads, which may be kept.

If the archive no longer has the beginning of the log, the snapshot's heads are the only record of
what the first records follow.
"""

from __future__ import annotations

from collections.abc import Sequence

from oplog.errors import ChainBrokenError
from oplog.postgres.work import Driver
from oplog.snapshot.base import SnapshotReader
from oplog.store import BrokenLink
from oplog.store.intake import RestorationStore, print_head


def restore_heads(
    driver: Driver, store: RestorationStore, *, snapshot: SnapshotReader | None
) -> None:
    """Check restored records, and keep a snapshot's heads of aggregates that have none.

    `ChainBrokenError` if records do not follow one another or the snapshot's head, or if the
    snapshot has a later head.
    """
    connection = driver.connection
    stage = store.stage_heads(connection)
    if snapshot is not None:
        driver.copy(
            f"COPY {stage} FROM STDIN",
            (
                print_head(head.aggregate, head.version, head_hash=head.head_hash)
                for head in snapshot.heads()
            ),
        )
    broken = store.list_broken_links(connection)
    if broken:
        raise _report_broken(broken)
    lost = store.list_lost_heads(connection)
    if lost:
        raise ChainBrokenError(
            f"entries of {', '.join(map(repr, lost))} are missing: the snapshot knows later ones",
            hint="the log or the snapshot was altered",
        )
    store.keep_heads(connection)


def _report_broken(broken: Sequence[BrokenLink]) -> ChainBrokenError:
    first = broken[0]
    return ChainBrokenError(
        f"the chains of the log that is restored are broken, {len(broken)} times at least: "
        f"aggregate {first.aggregate!r} version {first.version} (position {first.position}): "
        f"{first.reason}",
        hint="it was altered, or put together from two logs; restore an earlier position",
    )
