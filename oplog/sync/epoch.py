"""The right to publish: one epoch after the other, and heads published under the newest.

A head is created and its receipt written in the transaction that read the records. Whatever
dies in between, the next pass finds out from the newest head where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head
from oplog.archive.ownership import identify
from oplog.archive.step import Step
from oplog.errors import LeaseHeldError, LeaseLostError
from oplog.postgres.sqlstate import SERIALIZATION_FAILURE, read_sqlstate
from oplog.store.export import ExportStore, Lease
from oplog.sync.archive_row import make_blank, make_receipt
from oplog.sync.publish_context import (
    OutdatedViewError,
    PublishContext,
    is_followed,
    make_outdated,
)
from oplog.sync.publisher import Emit, Publisher

_T = TypeVar("_T")
_TRIES = 20
"""Turns of others that are waited for. Each is one transaction, and none follows by itself."""


@dataclass(frozen=True, slots=True)
class EpochNeeded:
    """The answer of an attempt that must not publish before an epoch is taken."""

    context: PublishContext


class EpochHolder:
    """Holds the epoch of one exporter. Not shared between threads."""

    def __init__(self, archive: Archive, *, store: ExportStore, writer: str, emit: Emit) -> None:
        self._archive = archive
        self._store = store
        self._writer = writer
        self._emit = emit
        self._publisher: Publisher | None = None

    @property
    def publisher(self) -> Publisher:
        """What publishes under the epoch; `LeaseLostError` if none was taken."""
        if self._publisher is None:
            raise LeaseLostError("no epoch was taken", hint="publish through run")
        return self._publisher

    def is_current(self, context: PublishContext) -> bool:
        """Whether the database's row still names the epoch that is held."""
        row, publisher = context.row, self._publisher
        return publisher is not None and row is not None and row.epoch == publisher.epoch

    def run(self, engine: Engine, attempt: Callable[[Connection], _T | EpochNeeded]) -> _T:
        """Do `attempt` in a transaction of its own; again after an epoch, if it needs one.

        Again too when another worker had its turn between this transaction's snapshot and its
        lease: so workers take turns, and none ends because of another. Raises `LeaseHeldError`
        when that never ends, and `LeaseLostError` when another worker published meanwhile.
        """
        done = False
        try:
            with engine.connect() as connection:
                for _ in range(_TRIES):
                    try:
                        with connection.begin():
                            found = attempt(connection)
                        if not isinstance(found, EpochNeeded):
                            done = True
                            return found
                        with connection.begin():
                            self._take(connection, found.context)
                    except OutdatedViewError:
                        continue
        except DBAPIError as cause:
            if read_sqlstate(cause) != SERIALIZATION_FAILURE:
                raise
            raise LeaseLostError(
                "another worker published while this one did",
                hint="nothing is lost, and this one may be started again",
            ) from cause
        finally:
            if self._archive.single_writer and not done:
                # A head of this epoch may still be on its way: the next has another name.
                self._publisher = None
        raise LeaseHeldError(
            f"other workers kept publishing to {self._archive.url}",
            hint="they do the work: see that one worker runs for each archive; nothing is lost",
        )

    def _take(self, connection: Connection, context: PublishContext) -> None:
        self._archive.require_writable()
        lease = self._store.try_lease(connection, context.head.archive_id)
        if lease is not Lease.OURS and not context.seized:
            # An epoch taken from under a worker in its turn would end that worker.
            raise make_outdated(self._archive)
        wanted = make_blank(self._archive, context.head, here=identify(context.origin))
        row = self._store.take_epoch(connection, wanted)
        self._publisher = Publisher(
            self._archive, writer=self._writer, epoch=row.epoch, emit=self._emit
        )
        self._emit(Step.TAKE_EPOCH, "", 0)

    def publish(
        self,
        connection: Connection,
        context: PublishContext,
        draft: Head,
        *,
        snapshot: bool = False,
        receipt: bool = True,
    ) -> Head:
        """Publish `draft` on top of the context's head; the head as it is published.

        `connection` is in the transaction that read what is published. The horizon stays where
        it is while a snapshot is being taken, whose chunks no head names yet; `snapshot` says
        that this is the head that names them. Without a `receipt` the database knows no more of
        the archive than before: for a head with the same records, some of which it may have lost.
        Raises `LeaseLostError`.
        """
        publisher, base = self.publisher, context.base
        if not context.seized and is_followed(self._archive, base.head):
            # By a worker that died before its receipt: this one begins again on top of it.
            raise make_outdated(self._archive)
        archive_id = base.head.archive_id
        settled = snapshot or self._store.try_reserve(connection, archive_id)
        published = publisher.create_head(base.head, draft, link=base.link, settled=settled)
        if receipt:
            self._acknowledge(connection, published)
        publisher.write_hint(published)
        return published

    def _acknowledge(self, connection: Connection, head: Head) -> None:
        """Write the receipt, in the transaction that read what is published."""
        here, epoch = identify(head.origin), self.publisher.epoch
        row = make_receipt(
            self._archive, head, epoch=epoch, cursor=head.cursor, here=here, owner=here
        )
        if not self._store.acknowledge(connection, row, position=head.position):
            raise LeaseLostError(
                f"this worker (epoch {epoch}) was overtaken while it published",
                hint="nothing is lost, and this one may be started again",
            )
        self._emit(Step.ACKNOWLEDGE, "", 0)
