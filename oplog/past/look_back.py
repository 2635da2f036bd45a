"""One moment of a log: the tables as they were at a position, all of them in one snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.catalog import DeclaredType
from oplog.errors import ConfigurationError, UnknownTypeError
from oplog.past.model_rows import list_rows, read_rows
from oplog.past.moment_plans import PastTypes, find_past_types
from oplog.past.one_snapshot import OneSnapshot, open_one_snapshot, pin_text, set_locally
from oplog.past.past_relation import Relation, make_relation
from oplog.past.past_rows import PastRows, PastTable
from oplog.past.past_select import Asked, PastSelect, read_select
from oplog.reading.given_place import find_place
from oplog.reading.log_opener import LogOpener
from oplog.reading.model_tables import check_model_tables, choose_model_types
from oplog.reading.reader import RecordReader
from oplog.replay.rebuild import find_last
from oplog.replay.row_query import read_collations
from oplog.store.removal import PruningStore

_SKEW = timedelta(minutes=1)
"""So far the clock of a caller may be ahead of the database's."""
_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Block:
    """The block that a moment is good in, and the temporary tables that were made in it."""

    left: bool = False
    scratches: list[str] = field(default_factory=list)


class Moment:
    """The logged tables as they were at `position`; made by `Oplog.moment`.

    Good inside its `with` block. Each table is rebuilt when it is first asked for, and once.
    """

    def __init__(
        self,
        types: PastTypes,
        rows: PastRows,
        *,
        asked: Connection | None,
        inside: OneSnapshot | None,
        shape: str,
        stream: bool,
        block: _Block,
    ) -> None:
        self.position = types.at
        """The last position that counts."""
        self._types = types
        self._rows = rows
        self._asked = asked
        self._inside = inside
        self._shape = shape
        self._stream = stream
        self._block = block
        self._made = 0
        self._tables: dict[str, PastTable] = {}
        self._relations: dict[str, Relation] = {}

    def rows(self, asked: Any, *, limit: int | None = None) -> Iterator[Mapping[str, Any]]:
        """The rows of then: of a mapped class, `Table` or type name, or those of a `select`.

        Of a model, mappings of the logged columns by key, with the values that `as_of` gives of a
        single row; at most `limit` of them. A `select` may filter, join, order and limit; its rows
        are mappings as SQLAlchemy gives them, with the columns of now. Every table in it has to be
        logged; excluded columns are NULL. Raises `UnknownTypeError` for a table that is not
        logged, and `ConfigurationError` for a select where there is no database, or with the
        columns of then.
        """
        self._require_open()
        if isinstance(asked, (sa.Select, sa.CompoundSelect)):
            if limit is not None:
                raise ConfigurationError(
                    "a select has its own limit", hint="give select(...).limit(...)"
                )
            found = self._run_select(asked, stream=self._stream)
        else:
            found = self._list_model(asked, limit, stream=self._stream)
        return self._give(found)

    def stored_rows(self, model: Any) -> Iterator[Mapping[str, Any]]:
        """`rows` of a model with values as the log stores them, for other formats.

        Numbers, booleans and bytes are Python's, everything else is PostgreSQL's text.
        """
        self._require_open()
        return self._give(self._list_model(model, None, stream=self._stream, stored=True))

    def _require_open(self) -> None:
        if self._block.left:
            raise ConfigurationError(
                "the moment is over: its block was left",
                hint="ask inside of: with log.moment(...) as then",
            )

    def _give(self, found: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        # A cursor goes on under the settings that it began with: there is one at a time.
        if not self._stream:
            return iter(list(found))
        self._stream = False
        return self._pass_on(found)

    def _pass_on(self, found: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        try:
            yield from found
        finally:
            self._stream = True

    # -- models ---------------------------------------------------------------------------

    def _list_model(
        self, model: Any, limit: int | None, *, stream: bool, stored: bool = False
    ) -> Iterator[Mapping[str, Any]]:
        types = choose_model_types(self._types.log.catalog, self._asked, model)
        if self._inside is None:
            names = self._require(types)
            tables = [self._tables[name] for name in names]
            yield from list_rows(tables, limit=limit, stored=stored)
            return
        connection = self._inside.connection
        with pin_text(connection):
            names = self._require(types)
            if not isinstance(model, str):
                check_model_tables(self._asked, types, self._types.reader)
            related = [(self._tables[n].plan, self._relations[n]) for n in names]
            yield from read_rows(connection, related, limit=limit, stream=stream, stored=stored)

    # -- selects --------------------------------------------------------------------------

    def _run_select(self, statement: Asked, *, stream: bool) -> Iterator[Mapping[str, Any]]:
        if self._inside is None:
            raise ConfigurationError(
                "a select needs a database that runs it, and there is only an archive",
                hint="give a connection together with the archive, or ask for a model's rows",
            )
        if self._shape == "then":
            raise ConfigurationError(
                "a select names the columns of now, and shape='then' has those of then",
                hint="leave out shape='then', or ask for a model's rows",
            )
        connection = self._inside.connection
        chosen, types = self._read(statement, connection)
        with pin_text(connection):
            self._require(types)
            check_model_tables(self._asked, types, self._types.reader)
            relations = {
                one: self._relations[self._types.match(declared)]
                for one, declared in zip(chosen.references, types, strict=True)
            }
            # Expressions on times mean those of the caller's zone.
            set_locally(connection, "timezone", self._inside.zone)
            yield from chosen.run(connection, relations, stream=stream)

    def _read(
        self, statement: Asked, connection: Connection
    ) -> tuple[PastSelect, list[DeclaredType]]:
        catalog = self._types.log.catalog
        known = [declared.table for declared in catalog.types.values()]
        tables = {(table.schema, table.name): table for table in known}
        chosen = read_select(statement, connection, known)
        types = []
        for one in chosen.references:
            # Another Table object of that schema and name is the same table.
            table = tables.get((one.table.schema, one.table.name), one.table)
            try:
                types += choose_model_types(catalog, self._asked, table)[:1]
            except UnknownTypeError as cause:
                raise UnknownTypeError(
                    f"table {one.table.fullname} is not logged: what it was is not known",
                    hint="leave it out of the select, or log it",
                ) from cause
        return chosen, types

    # -- tables ---------------------------------------------------------------------------

    def _require(self, types: Sequence[DeclaredType]) -> list[str]:
        """Rebuild the tables of these types unless they are there; their names."""
        names = [self._types.match(declared) for declared in types]
        inside = None if self._inside is None else self._inside.connection
        self._drop_changed()
        lacking = [name for name in dict.fromkeys(names) if name not in self._tables]
        plans = {name: self._types.plan(inside, name, shape=self._shape) for name in lacking}
        if not plans:
            return names
        found = {past.plan: past for past in self._rows.find(list(plans.values()))}
        collations = {} if inside is None else read_collations(inside, list(found))
        for name, plan in plans.items():
            self._tables[name] = found[plan]
            self._made += 1
            prefix = f"oplog_then_{self._made}_"
            self._relations[name] = make_relation(found[plan], collations=collations, prefix=prefix)
        return names

    def _drop_changed(self) -> None:
        """Forget tables made of live rows if the caller may have changed some of these since."""
        live = [name for name, past in self._tables.items() if past.replaced is not None]
        if live and self._inside is not None and self._inside.has_written():
            for name in live:
                del self._tables[name], self._relations[name]


@contextmanager
def open_moment(
    connection: Connection | None,
    log: LogOpener,
    *,
    at: int | datetime,
    shape: str = "now",
    stream: bool = False,
) -> Iterator[Moment]:
    """The moment `at`, a position or an aware datetime; everything is read in one snapshot.

    Raises `ConfigurationError` for a moment before the log began or in the future, `PrunedError`
    for one that is in an archive only.
    """
    block = _Block()
    with ExitStack() as stack:
        inside = None
        if connection is not None:
            inside = stack.enter_context(open_one_snapshot(connection))
        try:
            yield _make(connection, inside, log, at=at, shape=shape, stream=stream, block=block)
        finally:
            block.left = True
        # After an error the transaction is rolled back, and they go with it.
        if inside is not None:
            for name in block.scratches:
                inside.connection.exec_driver_sql(f"DROP TABLE {name}")


def _make(
    asked: Connection | None,
    inside: OneSnapshot | None,
    log: LogOpener,
    *,
    at: int | datetime,
    shape: str,
    stream: bool,
    block: _Block,
) -> Moment:
    own = None if inside is None else inside.connection
    reader = log.open(own, whole=own is None)
    snapshot = reader.source.read_snapshot()
    place = resolve_moment(reader, log, at, snapshot=snapshot, connection=own)
    types = find_past_types(reader, log, at=place, snapshot=snapshot)
    rows = PastRows(types, inside, snapshot=snapshot, scratches=block.scratches)
    streams = stream and inside is not None
    return Moment(types, rows, asked=asked, inside=inside, shape=shape, stream=streams, block=block)


def resolve_moment(
    reader: RecordReader,
    log: LogOpener,
    at: int | datetime,
    *,
    snapshot: str,
    connection: Connection | None,
) -> int:
    """`at` as a position that the log reaches; errors are those of `open_moment`."""
    place = find_place(reader, at, snapshot=snapshot)
    first = reader.source.find_later(_BEGINNING, snapshot=snapshot)
    pruned = None
    if connection is not None and log.archive is None:
        pruned = PruningStore(log.store.schema).read_watermark(connection)
        if pruned is not None and place < pruned.position:
            PruningStore(log.store.schema).require_whole(connection)
    if pruned is None and first is None:
        raise ConfigurationError(
            "the log is empty: it knows of no earlier moment",
            hint="write through the log, or adopt the rows that there are",
        )
    if pruned is None and first is not None and place < first:
        raise ConfigurationError(
            f"the log began after {_show(at)}: its first record has position {first}",
            hint=f"ask for position {first} or later: what was before is in no log",
        )
    last = max(find_last(reader, snapshot=snapshot), 0 if pruned is None else pruned.position)
    ahead = at > _read_clock(connection) + _SKEW if isinstance(at, datetime) else place > last
    if ahead:
        raise ConfigurationError(
            f"{_show(at)} is in the future: the last record has position {last}",
            hint="ask for a moment that has passed; a standby may not have reached it yet",
        )
    return place


def _read_clock(connection: Connection | None) -> datetime:
    if connection is None:
        return datetime.now(UTC)
    found: datetime = connection.exec_driver_sql("SELECT pg_catalog.clock_timestamp()").scalar_one()
    return found


def _show(at: int | datetime) -> str:
    return at.isoformat() if isinstance(at, datetime) else f"position {at}"
