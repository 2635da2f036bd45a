"""The part of `Oplog` that undoes: plans, and the transactions that carry them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from oplog.archive.archive import Archive
from oplog.capture.retry import RETRIES
from oplog.entry import check_metadata
from oplog.errors import OplogError, StalePlanError, UndoConflictError, UndoError
from oplog.facade.given_target import Readable, open_connection, take_connection
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading
from oplog.facade.writing_part import Writing
from oplog.postgres.work import open_snapshot, pin_settings
from oplog.receipt import Receipt
from oplog.undo.live_rows import are_same_tables, read_live_rows
from oplog.undo.plan_making import MadePlan, Wishes, make_plan
from oplog.undo.row_writes import RowWriter
from oplog.undo.selected_records import make_selection, name_undone
from oplog.undo.undo_conflict import Choice, UndoConflict
from oplog.undo.undo_plan import UndoPlan, check_choice


class Undoing:
    """Makes the opposite of logged transactions happen."""

    def __init__(self, log: LogParts, *, reading: Reading, writing: Writing) -> None:
        self._log = log
        self._reading = reading
        self._writing = writing

    def plan_undo(
        self,
        connection: Readable,
        *,
        records: Any = None,
        aggregate: str | Iterable[str] | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        after: int | datetime | None = None,
        through: int | datetime | None = None,
        on_conflict: Choice = "fail",
        values: Mapping[str, Any] | None = None,
        archive: Archive | None = None,
    ) -> UndoPlan:
        """What undoing some records would do, and what is in the way; nothing is written.

        `records` are positions, record ids, receipts or entries. Without any, all records are
        chosen that fit the rest, which means what it does for `read`. With `aggregate`, one or
        several, only what was done to these is undone. Columns that only the chosen records
        changed are set back; a column that others changed later is a conflict, and so is a row
        that others have written on. `on_conflict` is what becomes of these: `skip` leaves them,
        `overwrite` sets them back nevertheless, `fail` has `undo` refuse the plan;
        `plan.choose` says it for some of them. `values` are those of columns that are excluded
        from the log, by `table.column`, for rows that are made again.

        Works on a standby. The log is read from its beginning where needed: with `archive`, from
        there if it was pruned, else `PrunedError`. Raises `UndoError` for records that are not
        there, that have nothing to undo, or whose tables are gone; `ConfigurationError` if
        nothing says what is to be undone.
        """
        check_choice(on_conflict)
        selection = make_selection(
            records, aggregate=aggregate, metadata=metadata, after=after, through=through
        )
        wishes = Wishes(on_conflict, {}, dict(values or {}))
        opener = self._reading.make_opener(archive=archive)
        with (
            open_connection(connection, self._log.catalog) as given,
            open_snapshot(given, asynchronous=True) as inside,
        ):
            reader = opener.open(inside)
            with reader.skipped.name_in_misfits():
                return make_plan(inside, reader, selection, wishes=wishes).plan

    def undo(
        self,
        sessions: Callable[[], Session],
        plan: UndoPlan,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        retries: int = RETRIES,
        archive: Archive | None = None,
    ) -> list[Receipt]:
        """Carry a plan out in one logged transaction, which is retried as by `run`.

        Its record has the positions of what it undoes under `undoes`, `reason`, and what
        `metadata` says. Rows are locked and compared before anything is written: raises
        `StalePlanError` if one of them was changed since the plan was made,
        `UndoConflictError` if a conflict has no choice, `UndoError` where a constraint refuses.
        Then nothing was written. Returns the receipts; none if nothing was left to undo.
        """
        said = _describe(plan, reason, metadata)

        def work(session: Session) -> None:
            self._carry_out(session, plan, said, archive=archive)

        try:
            done = self._writing.run(
                sessions, work, retries=retries, idempotency_key=f"oplog/undo/{uuid4()}"
            )
        except _NotDoneError as cause:
            if cause.error is None:
                return []
            raise cause.error from cause.error.__cause__
        return done or []

    async def undo_async(
        self,
        sessions: Callable[[], Any],
        plan: UndoPlan,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        retries: int = RETRIES,
        archive: Archive | None = None,
    ) -> list[Receipt]:
        """`undo` for an async_sessionmaker.

        Plan inside `run_sync`: `await session.run_sync(lambda s: log.plan_undo(s, ...))`.
        """
        said = _describe(plan, reason, metadata)

        async def work(session: Any) -> None:
            await session.run_sync(
                lambda inner: self._carry_out(inner, plan, said, archive=archive)
            )

        try:
            done = await self._writing.run_async(
                sessions, work, retries=retries, idempotency_key=f"oplog/undo/{uuid4()}"
            )
        except _NotDoneError as cause:
            if cause.error is None:
                return []
            raise cause.error from cause.error.__cause__
        return done or []

    def _carry_out(
        self,
        session: Session,
        plan: UndoPlan,
        said: Mapping[str, list[str]],
        *,
        archive: Archive | None,
    ) -> None:
        """Write; `_NotDoneError` for what would be so again if the same plan were tried again."""
        connection = take_connection(session, self._log.catalog)
        self._writing.annotate(session, **dict[str, Any](said))
        with pin_settings(connection, asynchronous=True):
            made = self._plan_again(connection, plan, archive=archive)
            if made is None or made.plan.fingerprint != plan.fingerprint:
                raise _NotDoneError(_refuse_stale())
            undecided = made.plan.undecided
            if undecided:
                raise _NotDoneError(_refuse_undecided(undecided))
            if not made.ordered.batches:
                raise _NotDoneError(None)
            writer = RowWriter(connection, self._log.catalog, plans=made.tables, values=plan.values)
            try:
                writer.write(made.ordered)
            except UndoError as error:
                raise _NotDoneError(error) from error

    def _plan_again(
        self, connection: Connection, plan: UndoPlan, *, archive: Archive | None
    ) -> MadePlan | None:
        """The same plan as of now, its rows under lock; None if a table is another one by now."""
        if not are_same_tables(connection, [table for table, _ in plan.rows]):
            return None
        for table, keys in plan.rows:
            # Before the log is read: what it says of them then is all that was committed.
            read_live_rows(connection, table, keys, lock=True)
        reader = self._reading.make_opener(archive=archive).open(connection)
        wishes = Wishes(plan.on_conflict, plan.choices, plan.values)
        with reader.skipped.name_in_misfits():
            return make_plan(connection, reader, plan.selection, wishes=wishes)


class _NotDoneError(Exception):
    """Ends the transaction without another attempt, which the same plan would meet again.

    `error` is what the caller gets; None if nothing is left to undo.
    """

    def __init__(self, error: OplogError | None) -> None:
        super().__init__("the undo was not done")
        self.error = error


def _refuse_stale() -> StalePlanError:
    return StalePlanError(
        "rows of this plan, or their tables, were changed after it was made",
        hint="plan again, and look at what is in the way now",
    )


def _refuse_undecided(undecided: Sequence[UndoConflict]) -> UndoConflictError:
    return UndoConflictError(
        f"{len(undecided)} conflict{'' if len(undecided) == 1 else 's'} without a choice, the "
        f"first: {undecided[0].describe()}",
        hint="look at plan.preview(), and choose: plan.choose('skip'), or "
        "plan.choose('overwrite', [conflict]) where that is possible",
        conflicts=undecided,
    )


def _describe(
    plan: UndoPlan, reason: str | None, metadata: Mapping[str, str | Iterable[str]] | None
) -> dict[str, list[str]]:
    """The metadata of the undo's record."""
    said = {key: check_metadata(key, value) for key, value in (metadata or {}).items()}
    if reason is not None:
        said["reason"] = check_metadata("reason", reason)
    return {**said, **name_undone(note.position for note in plan.records)}
