"""The part of `Oplog` that reads: consumers, histories, replay and verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.catalog import DeclaredType
from oplog.doctor.inspection import match_key, read_key
from oplog.entry import Change
from oplog.errors import ConfigurationError
from oplog.facade.given_target import (
    Inside,
    Readable,
    open_connection,
    open_source,
    take_connection,
    take_engine,
)
from oplog.facade.log_parts import LogParts
from oplog.payload.upcast import StepLookup
from oplog.reading.log_opener import LogOpener
from oplog.reading.model_tables import check_model_tables, choose_model_types
from oplog.reading.page import Page, make_wish
from oplog.reading.reader import RecordReader
from oplog.reading.row_history import list_changes
from oplog.reading.step_check import StepReport, check_steps
from oplog.reading.subscription import BATCH_ENTRIES, Subscription
from oplog.replay import (
    MOST_DIFFERENCES,
    Progress,
    ReplayReport,
    VerifyReport,
    replay_log,
    verify_tables,
)
from oplog.store import LogSource
from oplog.store.feed import Feed

RowShape: TypeAlias = Literal["now", "then"]
"""Whose columns a row is shown with."""


class Reading:
    """What an application, an operator or a consumer asks a log."""

    def __init__(self, log: LogParts, *, pause: Callable[[], None] | None = None) -> None:
        """`pause` is called between records, so that what else there is to do is done."""
        self._log = log
        self._pause = pause

    def make_opener(
        self, *, archive: Archive | None = None, source: LogSource | None = None
    ) -> LogOpener:
        """What opens this log, `source` in its place, or what of it is in `archive`."""
        return LogOpener(
            self._log.store,
            self._log.catalog,
            keyring=self._log.keyring,
            sealer=self._log.sealer,
            codec=self._log.codec,
            archive=archive,
            source=source,
            pause=self._pause,
        )

    def open_reader(
        self,
        connection: Inside | None,
        *,
        revisions: Mapping[str, int] | None = None,
        source: LogSource | None = None,
        archive: Archive | None = None,
    ) -> RecordReader:
        """A reader of this log on `connection`, after checking schema, server and keyring.

        Reads `source` if it is given, instead of the log of the database; with an `archive`, what
        was published from there.
        """
        opener = self.make_opener(source=source, archive=archive)
        inside = None if connection is None else take_connection(connection, self._log.catalog)
        return opener.open(inside, revisions=revisions, whole=False)

    def read_key(
        self, connection: Readable, model: Any, *, texts: Sequence[str]
    ) -> dict[str, object]:
        """A row's primary key from text as people write it, for `history` and `as_of`.

        Each text is read by its column's own input function. They come in the key's order, or
        each as `column=text`. Raises `ConfigurationError` for text that is no key.
        """
        with open_connection(connection, self._log.catalog) as inside:
            self._log.store.require_current(inside)
            table = choose_model_types(self._log.catalog, inside, model)[0].table
            columns = [column.name for column in table.primary_key]
            return read_key(inside, table, texts=match_key(texts, columns))

    def subscribe(
        self,
        engine: Engine,
        *,
        name: str,
        max_entries: int = BATCH_ENTRIES,
        revisions: Mapping[str, int] | None = None,
    ) -> Subscription:
        """A durable consumer: `for batch in log.subscribe(...): ...; batch.commit()`.

        A batch is a sequence of `LoggedEntry` in causal order, whole transactions of about
        `max_entries` entries together. Its cursor is saved under `name` by `batch.commit()`,
        after which it is not delivered again. The iteration ends when nothing is new.
        `revisions` asks for types, by name, as of the revision that the consumer knows.
        """
        return Subscription(
            take_engine(engine),
            name=name,
            feed=Feed(self._log.schema),
            log=self.make_opener(),
            max_entries=max_entries,
            revisions=revisions,
        )

    # -- replaying ------------------------------------------------------------------------

    def replay(
        self,
        connection: Inside,
        *,
        into: str = "replayed",
        through: int | datetime | None = None,
        progress: Progress | None = None,
        archive: Archive | None = None,
    ) -> ReplayReport:
        """Rebuild every logged table in schema `into` from the log alone.

        Runs in the connection's transaction if it is in one, which the caller commits; else
        in one of its own. `through` is a position or an aware datetime. Tables of an earlier
        replay are replaced, any others refused. `progress` is called with the position
        reached and the last. Raises `SchemaDriftError`, `ChainBrokenError`, and `ReplayError`
        for a log that does not replay, `PrunedError` for one that was pruned, unless the
        `archive` is given that has its beginning.
        """
        return replay_log(
            take_connection(connection, self._log.catalog),
            self.make_opener(archive=archive),
            into=into,
            through=through,
            progress=progress,
        )

    def verify(
        self,
        connection: Readable,
        *,
        full: bool = True,
        limit: int = MOST_DIFFERENCES,
        progress: Progress | None = None,
        archive: Archive | None = None,
        uncommitted: bool = False,
    ) -> VerifyReport:
        """Compare the live tables with the log, row by row, in one snapshot; never repairs.

        A connection that is in a transaction already may see a state of its own: then a
        second one of the same engine is used, which sees what is committed. With `uncommitted`
        a transaction that has written is compared itself, as tests want that roll back in the
        end; what others commit meanwhile may look like a difference then.

        Every row is compared: only `full=True` is offered. At most `limit` differences are
        described, all are counted. Raises `SchemaDriftError`, `ChainBrokenError`, and
        `ReplayError` for a log that does not replay; `PrunedError` as `replay` does.
        """
        if not full:
            raise ConfigurationError(
                "this version verifies every row; there is no incremental verification",
                hint="call verify(connection), or replay a smaller log",
            )
        with open_connection(connection, self._log.catalog) as inside:
            return verify_tables(
                inside,
                self.make_opener(archive=archive),
                limit=limit,
                progress=progress,
                uncommitted=uncommitted,
            )

    def history(
        self,
        connection: Readable | None,
        model: Any,
        key: Any,
        *,
        after: int | datetime | None = None,
        through: int | datetime | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        cursor: str | None = None,
        shape: RowShape = "now",
        revisions: Mapping[str, int] | None = None,
        archive: Archive | None = None,
    ) -> Page[Change]:
        """What happened to a row, oldest first: when, by whom, what was written.

        `key` is the primary key's value, a tuple of them or a mapping. Reads the row's
        aggregate if its name follows from the key, else the whole log; of an `archive` all that
        it has. With `limit` (of changes) or `newest_first` no more is read than is given. The
        list's `cursor`, given back with the same arguments, asks for the next page, and is None
        after the last one. `after` and `through` are positions or aware datetimes.

        Columns have the names of now, and those that were added since the values that rows of
        before got; with `shape="then"` each change is as it was logged, and with `revisions` it is
        as of these revisions, by type. Of a table in several schemas `model` is that which the
        connection's `schema_translate_map` or `search_path` means; a type name says it as well.
        The connection may be None if there is an `archive`, as for `read`. Raises `PrunedError` as
        `replay` does, and `SchemaDriftError` where the connection means a table that is not the
        log's.
        """
        wish = make_wish(limit, cursor, newest_first=newest_first)
        with open_source(connection, self._log.catalog) as inside:
            types = choose_model_types(self._log.catalog, inside, model)
            reader, steps = self._open_row(inside, shape, revisions, archive=archive)
            changes = list_changes(
                reader,
                types,
                key=key,
                steps=steps if shape == "now" else None,
                span=(after, through),
                wish=wish,
            )
            self._check_tables(inside, model, types, reader)
            return changes

    @staticmethod
    def _check_tables(
        connection: Connection | None,
        model: Any,
        types: Sequence[DeclaredType],
        reader: RecordReader,
    ) -> None:
        # Last: types are read after the snapshot, so that they are those of all its records.
        if not isinstance(model, str):
            check_model_tables(connection, types, reader)

    def check_steps(
        self, connection: Readable | None, *, archive: Archive | None = None
    ) -> StepReport:
        """Try the declared steps on every effect of the log, and change nothing.

        Goes on after a failure, and reports each with its position, type, revision and error.
        """
        opener = self.make_opener(archive=archive)
        with open_source(connection, self._log.catalog) as inside:
            reader = opener.open(inside, stepping=False, whole=False)
            return check_steps(reader, opener.make_steps(reader))

    def _open_row(
        self,
        connection: Connection | None,
        shape: RowShape,
        revisions: Mapping[str, int] | None,
        *,
        archive: Archive | None,
    ) -> tuple[RecordReader, StepLookup | None]:
        """A reader, and the steps by which it shall read; None where it knows how."""
        if shape not in ("now", "then"):
            raise ConfigurationError(
                f"shape={shape!r} is neither 'now' nor 'then'",
                hint="'now' gives columns as they are, 'then' as they were",
            )
        opener = self.make_opener(archive=archive)
        if revisions:
            return opener.open(connection, revisions=revisions), None
        reader = opener.open(connection, stepping=False)
        return reader, opener.make_steps(reader)
