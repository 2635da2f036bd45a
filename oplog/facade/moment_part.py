"""The part of `Oplog` that looks back: tables and rows as they were, and what changed between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol, overload

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.errors import ConfigurationError
from oplog.facade.given_target import Readable, open_source
from oplog.facade.log_parts import LogParts
from oplog.facade.reading_part import Reading, RowShape
from oplog.past.look_back import Moment, open_moment
from oplog.reading.model_tables import check_model_tables, choose_model_types
from oplog.reading.row_history import rebuild_row

_EVERY: Any = object()
"""No key: all rows. None is not that, so that a key which is missing by mistake is refused."""


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
        key: Any = _EVERY,
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
        if key is not _EVERY:
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


def _check_shape(shape: str) -> None:
    if shape not in ("now", "then"):
        raise ConfigurationError(
            f"shape={shape!r} is neither 'now' nor 'then'",
            hint="'now' gives columns as they are, 'then' as they were",
        )
