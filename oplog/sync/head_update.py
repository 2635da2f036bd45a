"""One head that holds something else than new entries: a snapshot, a repair, a retention.

Goes through the exporter, so that lease, epoch, comparison and receipt are those of every other
publication. Must not know what is changed. The hard thing is the base: whatever a change decides,
it decides about the very head that it is published on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from sqlalchemy.engine import Connection, Engine

from oplog.archive.format.head import Head
from oplog.sync.divergence import refuse_fork
from oplog.sync.exporter import Exporter
from oplog.sync.publisher import Publisher

Change: TypeAlias = Callable[[Connection, Head, Publisher], Head | None]
"""Makes a head of a head, in the transaction that publishes it."""


@dataclass(frozen=True, slots=True)
class _Changed:
    head: Head | None


def publish_change(
    exporter: Exporter,
    engine: Engine,
    change: Change,
    *,
    catch_up: bool = False,
    seize: bool = False,
) -> Head | None:
    """Publish what `change` makes of the newest head; the head that is then published.

    `change` gets the transaction (REPEATABLE READ), a head and a publisher. It puts what is to
    be referred to, and gives the head back as it should be, or None to publish nothing. With
    `catch_up` the head that it gets is a draft that has every entry the transaction sees;
    otherwise it is the newest one (caught up as well where a receipt was lost). It is not
    called for an archive without entries. The answer is None when nothing was published. Raises
    as `Exporter.publish_page`, and `LogForkedError` under every policy.
    """

    def attempt(connection: Connection) -> _Changed | None:
        footing = exporter.find_footing(connection, seize=seize)
        if footing.standing.lost:
            raise refuse_fork(exporter.archive, footing.standing, same=footing.is_owner)
        if not exporter.has_epoch(footing):
            return None
        publisher = exporter.require_publisher()
        draft = replace(footing.head, origin=footing.origin)
        draft = exporter.add_news(connection, draft, footing.standing, catch_up=catch_up)
        changed = change(connection, draft, publisher) if draft.sequence else None
        if changed is None:
            return _Changed(None)
        published = publisher.create_head(footing.head, changed)
        exporter.acknowledge(connection, published)
        publisher.write_hint(published)
        return _Changed(published)

    return exporter.run(engine, attempt).head
