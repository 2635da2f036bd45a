"""The revision of now: what the live tables of a log are, noted or not.

Somebody may have migrated a table, and nobody has noted it in the log yet. As far as the database
proves what became of the rows, the table counts as a next revision, which is stored nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy.engine import Connection

from oplog.errors import NotCapturableError, SchemaDriftError
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveColumn, LiveTable
from oplog.postgres.table_place import Place, find_places, fits, is_same_type, list_placed
from oplog.postgres.type_evolution import follow_names
from oplog.replay.type_target import TypeTarget
from oplog.store.adopted import Turns
from oplog.store.type_store import TypeStore
from oplog.value import codec_for


@dataclass(slots=True)
class LiveTargets:
    """Live tables, each with the revision of a type that it has the columns of.

    `gone` are types whose tables were dropped, which the log does not say yet. `unnoted` are
    types whose tables were changed since, with what became of their rows.
    """

    placed: list[tuple[LiveTable, TypeTarget]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    unnoted: dict[str, SchemaChange] = field(default_factory=dict)


def find_live_targets(
    connection: Connection,
    revisions: Mapping[str, Sequence[Shape]],
    turns: Mapping[str, Turns],
    *,
    schema: str,
    missing: bool = False,
) -> LiveTargets:
    """The tables of all types, whose revisions rise; `schema` is that of the log.

    Types that were retired are left out where they have no table, with `missing` all others too.
    `SchemaDriftError` for one whose table is missing or replaced, and where the database does not
    prove what became of rows.
    """
    found = LiveTargets()
    for name, place in find_places(connection, revisions).items():
        shapes = revisions[name]
        retired = turns.get(name, Turns()).is_retired_at(shapes[-1].revision)
        if place.live is None:
            if not (retired or place.dropped or missing):
                raise _refuse_missing(shapes[-1])
            if not retired:
                found.gone.add(name)
            continue
        named = (shapes[-1].schema, shapes[-1].table)
        if retired and (place.live.schema, place.live.name) != named:
            # It went on under another name, and is not logged any more.
            continue
        if place.dropped and not retired:
            if _has_rows(connection, place.live):
                raise refuse_replaced(place.live, shapes[-1])
            found.gone.add(name)
        target = _find_target(connection, place, shapes, found=found, schema=schema)
        found.placed.append((place.live, target))
    return found


def _find_target(
    connection: Connection,
    place: Place,
    shapes: Sequence[Shape],
    *,
    found: LiveTargets,
    schema: str,
) -> TypeTarget:
    live, newest = place.live, shapes[-1]
    if live is None:
        raise _refuse_missing(newest)
    if place.noted is not None and place.noted is not newest:
        # Of a restored or following database, whose log knows later revisions.
        for shape in reversed(shapes):
            if fits(shape, live, shapes):
                return TypeTarget(shape, shapes)
    now, same = derive_now(live, shapes), fits(newest, live, shapes)
    change = SchemaChange()
    if not place.dropped:
        _check_key(live, now, place.noted or newest)
        change = _describe(connection, live, now, newest=newest, schema=schema)
    keys = {column.number for column in now.key_columns}
    if change.readopted and keys & change.rewritten:
        raise _refuse_unnoted(live, newest)
    if same and not (change.fills or change.rewritten or change.labels or change.readopted):
        if (live.schema, live.name) != (newest.schema, newest.table) and not place.dropped:
            found.unnoted[newest.type_name] = change
        return TypeTarget(newest, shapes)
    if not place.dropped:
        found.unnoted[newest.type_name] = change
    next_one = replace(now, revision=newest.revision + 1, change=replace(change, readopted=False))
    return TypeTarget(next_one, (*shapes, next_one))


def derive_now(live: LiveTable, shapes: Sequence[Shape]) -> Shape:
    """The table as a revision of the type: as if it were noted now.

    `SchemaDriftError` for a column that cannot be logged.
    """
    newest = shapes[-1]
    excluded = _follow_excluded(live, newest)
    columns = [
        _declare(live, column)
        for column in live.columns
        if not column.generated and column.name not in excluded
    ]
    return derive_shape(
        newest.type_name,
        columns,
        schema=live.schema,
        table=live.name,
        aggregate=newest.aggregate,
        excluded=excluded,
        stored=shapes,
        numbers=live.numbers,
    )


def _follow_excluded(live: LiveTable, newest: Shape) -> dict[str, str]:
    """The excluded columns, under the names that they have now."""
    names = follow_names(newest, live)
    return {names[name]: why for name, why in newest.excluded.items() if name in names}


def _declare(live: LiveTable, column: LiveColumn) -> DeclaredColumn:
    try:
        kind = codec_for(column.pg_type, category=column.category).kind
    except NotCapturableError as cause:
        raise SchemaDriftError(
            f"column {live.schema}.{live.name}.{column.name} is in the table and not in the log: "
            f"{cause}",
            hint=cause.hint,
        ) from cause
    return DeclaredColumn(
        column.name, column.pg_type, kind, column.primary_key, category=column.category
    )


def _check_key(live: LiveTable, now: Shape, noted: Shape) -> None:
    """Raise `SchemaDriftError` if rows are told apart by other columns than they were."""
    placed = list_placed(live, [noted])
    by_name = {column.name: column for column in live.columns}
    known = {
        column.name
        for name in now.key_names
        for column in placed.get(by_name[name].number, noted.columns if not placed else ())
        if placed or column.name == name
    }
    if known != set(noted.key_names):
        raise SchemaDriftError(
            f"{live.schema}.{live.name} has primary key ({', '.join(now.key_names)}) in the "
            f"database and ({', '.join(noted.key_names)}) in the log (type {noted.type_name!r} "
            f"revision {noted.revision})",
            hint=_say_replaced(noted),
        )


def _describe(
    connection: Connection, live: LiveTable, now: Shape, *, newest: Shape, schema: str
) -> SchemaChange:
    changes = TypeStore(schema)
    if not changes.may_describe(connection):
        return _compare(now, newest)
    return changes.describe(connection, [(now, live.oid)])[0]


def _compare(now: Shape, newest: Shape) -> SchemaChange:
    """What the shapes alone say, for a role that may not ask the database for more."""
    known = newest.by_number
    return SchemaChange(
        previous=newest.revision,
        fills={},
        rewritten=frozenset(
            column.number
            for column in now.columns
            if column.number in known
            and not is_same_type(column.pg_type, known[column.number].pg_type)
        ),
    )


def _has_rows(connection: Connection, live: LiveTable) -> bool:
    return bool(
        connection.exec_driver_sql(
            f"SELECT EXISTS (SELECT FROM {live.qualified})",
            execution_options={"no_parameters": True},
        ).scalar_one()
    )


def refuse_replaced(live: LiveTable, newest: Shape) -> SchemaDriftError:
    """The error for a table that came in place of the one that the log knows, with rows."""
    return SchemaDriftError(
        f"table {live.schema}.{live.name} was replaced by another one of that name, which has rows "
        f"(type {newest.type_name!r} revision {newest.revision})",
        hint=_say_replaced(newest),
    )


def _say_replaced(newest: Shape) -> str:
    return (
        "if a migration did it, say so in the migration, which logs the rows anew: "
        f"op.replace_type({newest.type_name!r}, reason=...)"
    )


def _refuse_unnoted(live: LiveTable, newest: Shape) -> SchemaDriftError:
    return SchemaDriftError(
        f"the key of {live.schema}.{live.name} was converted, and its rows are not logged under "
        f"the new one yet (type {newest.type_name!r} revision {newest.revision})",
        hint="note the change and log the rows: oplog types sync",
    )


def _refuse_missing(newest: Shape) -> SchemaDriftError:
    return SchemaDriftError(
        f"table {newest.schema}.{newest.table} is in the log (type {newest.type_name!r}) and not "
        "in the database",
        hint="if a migration dropped it, say so in a migration: "
        f"op.retire_type({newest.type_name!r}, reason=...)",
    )
