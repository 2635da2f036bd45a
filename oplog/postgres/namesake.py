"""Finds which table a name means when several schemas have one of that name.

A model without a schema names the first table on the search path of the moment. Rows of two tables
under one type have the same aggregates and cannot be told apart again. So a type stays with the
table that it was stored for, as long as that exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy.engine import Connection

from oplog.errors import SchemaDriftError, UnloggedWriteError
from oplog.payload.shape import Shape
from oplog.postgres.live_table import DATABASE_ID, LiveTable
from oplog.postgres.quoting import (
    qualify,
)

Named = Sequence[tuple[str, int]]
"""Names as models spell them, quoted, each with the oid of the table that it has to mean."""
_HINT = (
    "name the schema in the model (__table_args__ = {'schema': ...}), so that search_path does "
    "not decide; for a schema for each tenant, name them all in the catalog: "
    "TypeCatalog.from_models(..., schemas=[...])"
)


def refuse_second_table(
    connection: Connection, live: LiveTable, *, type_name: str, stored: Sequence[Shape]
) -> None:
    """Raise `SchemaDriftError` if the type was stored for another table, which is still there.

    A table that was renamed or moved has left no other behind.
    """
    if not stored:
        return
    newest = max(stored, key=lambda shape: shape.revision)
    if (newest.schema, newest.table) == (live.schema, live.name):
        return
    (name,) = qualify([newest.table], newest.schema)
    found = resolve_names(connection, [name])[0]
    if found is not None and found != live.oid:
        raise SchemaDriftError(
            f"type {type_name!r} is table {name} in the log, which is still there, and "
            f"{live.qualified} here: rows of two tables in one type could not be told apart",
            hint=_HINT,
        )


def check_names(connection: Connection, named: Named) -> None:
    """Raise `UnloggedWriteError` unless each name means its table at this moment."""
    found = resolve_names(connection, [name for name, _ in named])
    for (name, oid), other in zip(named, found, strict=True):
        if other != oid:
            raise refuse_other_table([name])


class Known(NamedTuple):
    """The table that a database has had for a type, and the quoted name that models give it."""

    type_name: str
    name: str
    database: str
    oid: int


def refuse_mistaken(connection: Connection, known: Sequence[Known]) -> None:
    """Raise `SchemaDriftError` if a name means a table that is not the type's, which is there."""
    found = connection.exec_driver_sql(
        "SELECT w.n, pg_catalog.to_regclass(w.name)::text "
        "FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[]), "
        "pg_catalog.unnest(%s::bigint[])) WITH ORDINALITY AS w(name, database, oid, n) "
        f"WHERE w.database = {DATABASE_ID} "
        "AND pg_catalog.to_regclass(w.name)::oid <> w.oid::oid "
        "AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = w.oid::oid) LIMIT 1",
        (
            [one.name for one in known],
            [one.database for one in known],
            [one.oid for one in known],
        ),
    ).one_or_none()
    if found is not None:
        one = known[found[0] - 1]
        raise SchemaDriftError(
            f"{one.name} means {found[1]} on this connection, which is not the table that the log "
            f"has under type {one.type_name!r}",
            hint=f"ask for the type by its name, {one.type_name!r}; {_HINT}",
        )


def find_name(connection: Connection, oid: int) -> tuple[str, str] | None:
    """Schema and name of a table; None if it is gone."""
    found = connection.exec_driver_sql(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::bigint::oid",
        (oid,),
    ).one_or_none()
    return None if found is None else (found[0], found[1])


def refuse_other_table(names: Iterable[str], *, written: str = "") -> UnloggedWriteError:
    """The error for a statement that wrote another table than the one the log knows."""
    names = list(names)
    if written in names:
        return UnloggedWriteError(
            f"table {written} was replaced by another one of that name since this process looked",
            hint="run the transaction again: it looks at the table anew",
            retryable=True,
        )
    return UnloggedWriteError(
        f"{written or 'a table of the same name'} was written in place of the tracked "
        f"{' or '.join(names)}: the name means another table in this transaction",
        hint=f"if search_path was changed: {_HINT}; if a migration has replaced the table, run "
        "the transaction again",
        # The next one looks at the database anew.
        retryable=True,
    )


def resolve_names(connection: Connection, names: Sequence[str]) -> list[int | None]:
    """The oid of the table that each quoted name means at this moment; None if there is none."""
    rows = connection.exec_driver_sql(
        "SELECT pg_catalog.to_regclass(w.name)::oid::bigint "
        "FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS w(name, n) ORDER BY w.n",
        (list(names),),
    )
    return list(rows.scalars())
