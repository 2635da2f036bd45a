"""The part of `Oplog` that looks back: tables and rows as they were, and what changed between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, Protocol, cast, overload

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.errors import ConfigurationError
from oplog.facade.async_target import AsyncMoment, enter_on, iterate_on, run_on
from oplog.facade.given_target import Readable, open_source
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading, RowShape
from oplog.past.look_back import Moment, open_moment
from oplog.past.row_difference import RowDifference
from oplog.past.row_versions import RowVersion, list_versions
from oplog.past.stretch import EVERY, open_stretch
from oplog.reading.model_tables import check_model_tables, choose_model_types
from oplog.reading.row_history import rebuild_row


class AsOf(Protocol):
    """`Oplog.as_of`: one row, or all."""

    @overload
    def __call__(
        self,
        connection: Readable | None,
        model: Any,
        *,
        at: int | datetime,
        shape: RowShape = ...,
        archive: Archive | None = ...,
    ) -> Iterator[Mapping[str, Any]]: ...
    @overload
    def __call__(
        self,
        connection: Readable | None,
        model: Any,
        key: Any,
        *,
        at: int | datetime,
        shape: RowShape = ...,
        revisions: Mapping[str, int] | None = ...,
        archive: Archive | None = ...,
    ) -> dict[str, Any] | None: ...


class Moments:
    """What an application or an operator asks about earlier states."""

    def __init__(self, log: LogParts, *, reading: Reading) -> None:
        self._log = log
        self._reading = reading

    @contextmanager
    def moment(
        self,
        connection: Readable | None,
        *,
        at: int | datetime,
        shape: RowShape = "now",
        archive: Archive | None = None,
    ) -> Iterator[Moment]:
        """The tables as they were at one moment: `with log.moment(connection, at=...) as then`.

        `then.rows(model)` gives a model's rows, `then.rows(select)` those of a `select` over any
        logged tables, all as of `at`, a position or an aware datetime. `connection`, `archive` and
        `shape` are as for `history`. Only tables that are asked for are rebuilt, from the live rows
        and what the log has of those that were touched since. All is read in one snapshot: in the
        caller's transaction if that is REPEATABLE READ or has written, in a second connection of
        its engine if it is not; a connection in no transaction is in one for the block, which
        commits. With an `Engine` rows are streamed. Raises `ConfigurationError` for a moment before
        the log began or in the future, `PrunedError` and `SchemaDriftError` as `replay` does.
        """
        _check_shape(shape)
        opener = self._reading.make_opener(archive=archive)
        with open_source(connection, self._log.catalog) as inside:
            stream = isinstance(connection, Engine)
            with open_moment(inside, opener, at=at, shape=shape, stream=stream) as found:
                yield found

    def as_of(
        self,
        connection: Readable | None,
        model: Any,
        key: Any = EVERY,
        *,
        at: int | datetime,
        shape: RowShape = "now",
        revisions: Mapping[str, int] | None = None,
        archive: Archive | None = None,
    ) -> Iterator[Mapping[str, Any]] | dict[str, Any] | None:
        """One row's logged columns at a position or an aware datetime; without `key` all rows.

        With `key` None if there was no row. Columns are those of now; with `shape="then"` those
        that the table had at that position, and with `revisions` those of these revisions, by type.
        `connection`, `archive` and errors are as for `history`.

        Without `key`, `model` may also be a `select` over logged tables. Rows are mappings, those
        of a model in the order of its key; of an `Engine` they are streamed. `revisions` are of a
        single row only. This is `moment` for one question.
        """
        if key is not EVERY:
            return self._find_row(
                connection, model, key, at=at, shape=shape, revisions=revisions, archive=archive
            )
        if revisions:
            raise ConfigurationError(
                "revisions are of a single row, and no key is given",
                hint="give a key, or shape='then' for the columns of then",
            )

        def iterate() -> Iterator[Mapping[str, Any]]:
            with self.moment(connection, at=at, shape=shape, archive=archive) as then:
                yield from then.rows(model)

        # At once unless it is streamed, so that what is wrong is said by the call.
        return iterate() if isinstance(connection, Engine) else iter(list(iterate()))

    def _find_row(
        self,
        connection: Readable | None,
        model: Any,
        key: Any,
        *,
        at: int | datetime,
        shape: RowShape,
        revisions: Mapping[str, int] | None,
        archive: Archive | None,
    ) -> dict[str, Any] | None:
        _check_shape(shape)
        opener = self._reading.make_opener(archive=archive)
        with open_source(connection, self._log.catalog) as inside:
            types = choose_model_types(self._log.catalog, inside, model)
            if revisions:
                reader, steps = opener.open(inside, revisions=revisions), None
            else:
                reader = opener.open(inside, stepping=False)
                steps = opener.make_steps(reader)
            row = rebuild_row(reader, types, key=key, at=at, steps=steps, then=shape == "then")
            if not isinstance(model, str):
                check_model_tables(inside, types, reader)
            return row

    def versions(
        self,
        connection: Readable | None,
        model: Any,
        key: Any,
        *,
        shape: RowShape = "now",
        archive: Archive | None = None,
    ) -> Sequence[RowVersion]:
        """The versions of one row, oldest first: what each transaction made of it, and who did.

        Reads what `history` reads, and takes and raises the same. Each version has `row`, the
        columns after it by name and as attributes, `changes`, `previous` and `next`. With
        `shape="then"` changes are as they were logged.
        """
        changes = self._reading.history(connection, model, key, shape=shape, archive=archive)
        opener = self._reading.make_opener(archive=archive)
        with open_source(connection, self._log.catalog) as inside:
            types = choose_model_types(self._log.catalog, inside, model)
            reader = opener.open(inside, whole=False, stepping=False)
            return list_versions(changes, reader, types, now=shape == "now")

    def diff(
        self,
        connection: Readable | None,
        model: Any,
        *,
        before: int | datetime,
        after: int | datetime | None = None,
        key: Any = EVERY,
        archive: Archive | None = None,
    ) -> Iterator[RowDifference]:
        """Rows of a model that are not the same at two moments, by key; `after` None is now.

        Each with both rows, the columns that changed, and the records that did it. A row that was
        changed and changed back is left out. With `key` only that row. Reads the log alone: the
        records between the moments, and the histories of the rows that these touched; memory grows
        with the number of those rows' keys. `connection`, `archive` and errors are as for `moment`;
        a connection in no transaction is not used itself, but a second one of its engine. Raises
        `ConfigurationError` where `after` lies before `before`.
        """
        opener = self._reading.make_opener(archive=archive)

        def iterate() -> Iterator[RowDifference | None]:
            with open_source(connection, self._log.catalog) as asked:
                types = choose_model_types(self._log.catalog, asked, model)
                with open_stretch(asked, opener, before=before, after=after) as stretch:
                    if not isinstance(model, str):
                        check_model_tables(asked, types, stretch.reader)
                    yield None
                    yield from stretch.compare(types, key=key)

        return _begin(iterate())

    # -- asynchronous forms ---------------------------------------------------------------

    async def as_of_async(
        self,
        connection: Any,
        model: Any,
        key: Any = EVERY,
        *,
        at: int | datetime,
        shape: RowShape = "now",
        revisions: Mapping[str, int] | None = None,
        archive: Archive | None = None,
    ) -> Any:
        """`as_of` on an AsyncConnection, AsyncSession or AsyncEngine; many rows are a list."""

        def ask(inside: Readable | None) -> Any:
            found = self.as_of(
                inside, model, key, at=at, shape=shape, revisions=revisions, archive=archive
            )
            return list(found) if key is EVERY and found is not None else found

        return await run_on(connection, ask)

    @asynccontextmanager
    async def moment_async(
        self,
        connection: Any,
        *,
        at: int | datetime,
        shape: RowShape = "now",
        archive: Archive | None = None,
    ) -> AsyncIterator[AsyncMoment]:
        """`moment` on an AsyncConnection, AsyncSession or AsyncEngine: `await then.rows(...)`."""
        async with enter_on(
            connection, lambda inside: self.moment(inside, at=at, shape=shape, archive=archive)
        ) as (then, run):
            yield AsyncMoment(then, run)

    async def versions_async(
        self,
        connection: Any,
        model: Any,
        key: Any,
        *,
        shape: RowShape = "now",
        archive: Archive | None = None,
    ) -> Sequence[RowVersion]:
        """`versions` on an AsyncConnection, AsyncSession or AsyncEngine."""

        def ask(inside: Readable | None) -> Sequence[RowVersion]:
            return self.versions(inside, model, key, shape=shape, archive=archive)

        found: Sequence[RowVersion] = await run_on(connection, ask)
        return found

    async def diff_async(
        self,
        connection: Any,
        model: Any,
        *,
        before: int | datetime,
        after: int | datetime | None = None,
        key: Any = EVERY,
        archive: Archive | None = None,
    ) -> AsyncIterator[RowDifference]:
        """`diff` on an AsyncConnection, AsyncSession or AsyncEngine: `async for one in ...`."""

        def ask(inside: Readable | None) -> Iterator[RowDifference]:
            return self.diff(inside, model, before=before, after=after, key=key, archive=archive)

        async for one in iterate_on(connection, ask):
            yield one


def _begin(steps: Iterator[RowDifference | None]) -> Iterator[RowDifference]:
    """Go to the first yield at once, so that what is wrong is said by the call."""
    next(steps)
    return cast("Iterator[RowDifference]", steps)


def _check_shape(shape: str) -> None:
    if shape not in ("now", "then"):
        raise ConfigurationError(
            f"shape={shape!r} is neither 'now' nor 'then'",
            hint="'now' gives columns as they are, 'then' as they were",
        )
