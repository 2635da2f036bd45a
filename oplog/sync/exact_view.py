"""A view of the database at exactly the archive's newest record, for work that takes long.

The right to publish is held only while the view is made. A second transaction takes over what the
publishing one sees, so that others publish while it reads. Until it ends, no head raises the
horizon: what is put for it is named by no head yet, and must not be taken for garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy.engine import Connection, Engine

from oplog.archive.format.head import Head
from oplog.backoff import Backoff
from oplog.errors import LeaseHeldError
from oplog.sync.divergence import refuse_fork
from oplog.sync.epoch import EpochNeeded
from oplog.sync.exporter import Exporter
from oplog.sync.publish_context import PublishContext
from oplog.sync.publisher import Publisher

_T = TypeVar("_T")

PATIENCE = Backoff(first_seconds=0.05, longest_seconds=1.0, deadline_seconds=60.0)
"""How long who publishes now and then waits for a worker that publishes all the time."""


@dataclass(frozen=True, slots=True)
class ExactView:
    """A transaction that sees exactly the records up to `head`, and what puts content for it."""

    connection: Connection
    head: Head
    publisher: Publisher


def take_turn(work: Callable[[], _T], *, patience: Backoff | None = None) -> _T:
    """Do `work` when it is this process's turn to publish; `LeaseHeldError` if it never is."""
    patience = patience or PATIENCE
    pauses = patience.begin()
    while True:
        try:
            return work()
        except LeaseHeldError:
            pause = next(pauses, None)
            if pause is None:
                raise
        patience.sleep(pause)


@contextmanager
def open_exact_view(exporter: Exporter, engine: Engine) -> Iterator[ExactView | None]:
    """Publish what is new, and give a view of the database as the newest head has it.

    None for a log without records. The view's transaction ends with the block. Raises
    `LogForkedError` under every policy, and `LeaseHeldError` if it is another worker's turn, or
    if another such view is open.
    """
    with ExitStack() as opened:

        def attempt(connection: Connection) -> ExactView | EpochNeeded | None:
            context = exporter.find_context(connection)
            if context.divergence.lost:
                raise refuse_fork(exporter.archive, context.divergence, same=context.is_owner)
            if not exporter.epoch.is_current(context):
                return EpochNeeded(context)
            with ExitStack() as fresh:
                view = _open(exporter, engine, connection, context, opened=fresh)
                opened.push(fresh.pop_all())
            return view

        yield exporter.epoch.run(engine, attempt)


def _open(
    exporter: Exporter,
    engine: Engine,
    connection: Connection,
    context: PublishContext,
    *,
    opened: ExitStack,
) -> ExactView | None:
    """The view that the publishing transaction of `connection` has."""
    store, publisher = exporter.store, exporter.epoch.publisher
    divergence = context.divergence
    draft = replace(context.head, origin=context.origin)
    draft = exporter.drafter.add_all(connection, draft, divergence, publisher=publisher)
    if not draft.sequence:
        return None
    inside = opened.enter_context(engine.connect())
    opened.enter_context(inside.begin())
    store.import_view(inside, store.export_view(connection))
    if not store.try_reserve(inside, draft.archive_id):
        raise LeaseHeldError(
            f"another snapshot is being taken for {exporter.archive.url}",
            hint="wait until it is done",
        )
    head = context.head
    if divergence.published or (draft.sequence, draft.types) != (head.sequence, head.types):
        head = exporter.epoch.publish(connection, context, draft)
    return ExactView(inside, head, publisher)
