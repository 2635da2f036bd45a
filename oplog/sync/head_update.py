"""One head that holds something else than new records: a snapshot, a repair, a retention.

Goes through an exporter, so that lease, epoch, comparison and receipt are those of every other
publication. An update decides about the very head that it is published on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from sqlalchemy.engine import Connection, Engine

from oplog.archive.format.head import Head
from oplog.sync.divergence import refuse_fork
from oplog.sync.epoch import EpochNeeded
from oplog.sync.exporter import Exporter
from oplog.sync.publish_context import Base
from oplog.sync.publisher import Publisher

HeadUpdate: TypeAlias = Callable[[Connection, Head, Publisher], Head | None]
"""Makes a head of a head, in the transaction that publishes it."""


@dataclass(frozen=True, slots=True)
class _Published:
    head: Head | None


def publish_update(
    exporter: Exporter,
    engine: Engine,
    update: HeadUpdate,
    *,
    catch_up: bool = False,
    seize: bool = False,
    base: Base | None = None,
    snapshot: bool = False,
) -> Head | None:
    """Publish what `update` makes of the newest head; the head that is then published.

    `update` gets the transaction (REPEATABLE READ), a head and a publisher. It puts what is to
    be referred to, and gives the head back as it should be, or None to publish nothing. With
    `catch_up` the head that it gets is a draft that has every record the transaction sees;
    otherwise it is the newest one (caught up as well where a receipt was lost). It is not
    called for an archive without records. `base` is taken for the newest head unless there is
    one after it. `snapshot` is as for `EpochHolder.publish`. The answer is None when nothing was
    published. Raises as `Exporter.publish_page`, and `LogForkedError` under every policy.
    """

    def attempt(connection: Connection) -> _Published | EpochNeeded:
        context = exporter.find_context(connection, seize=seize, base=base)
        divergence = context.divergence
        if divergence.lost:
            raise refuse_fork(exporter.archive, divergence, same=context.is_owner)
        if not exporter.epoch.is_current(context):
            return EpochNeeded(context)
        publisher = exporter.epoch.publisher
        draft = replace(context.head, origin=context.origin)
        if catch_up or divergence.published:
            draft = exporter.drafter.add_all(connection, draft, divergence, publisher=publisher)
        else:
            draft = replace(draft, cursor=divergence.cursor.to_json())
        updated = update(connection, draft, publisher) if draft.sequence else None
        if updated is None:
            return _Published(None)
        return _Published(exporter.epoch.publish(connection, context, updated, snapshot=snapshot))

    return exporter.epoch.run(engine, attempt).head
