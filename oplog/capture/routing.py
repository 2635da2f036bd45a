"""Which live table a statement writes, before it is sent.

Usually a table of the models is one table of the database, whose name is compared later. Tables of
tenants have one name in several schemas: `schema_translate_map` says in which of them, or the
search path, which is asked of the database as it is at that moment. What was asked is kept as long
as the search path is known to be the same: PostgreSQL 18 reports each change of it, under older
servers only statements that write rows follow one another without asking again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.binding import Binding
from oplog.capture.recorder import Recorder
from oplog.catalog import TypeCatalog
from oplog.errors import NotCapturableError, UnloggedWriteError
from oplog.postgres.namesake import find_name, resolve_names
from oplog.postgres.quoting import qualify
from oplog.postgres.search_path import find_path
from oplog.tenant_tables import Tenants
from oplog.type_binding import BoundType

_SCHEMAS = "TypeCatalog.from_models(..., schemas=[...])"


class Place(NamedTuple):
    """A live table, and the quoted name by which a statement writes it.

    `asked` says that the name was just asked for, and cannot mean another table.
    """

    bound: BoundType
    name: str
    asked: bool = False


class Router:
    """Finds the tables that one statement writes."""

    def __init__(
        self,
        catalog: TypeCatalog,
        connection: Connection,
        recorder: Recorder,
        *,
        binding: Binding,
        context: Any,
    ) -> None:
        self._catalog = catalog
        self._connection = connection
        self._recorder = recorder
        self._binding = binding
        self._translated = find_translation(context)

    def find(self, table: Any, *, namesake: bool = False) -> Place | None:
        """The place of a table of the models; None if it is not logged, or not there.

        With `namesake`, also of another `Table` object of its name. Raises
        `NotCapturableError` for another schema of a `schema_translate_map`, and
        `UnloggedWriteError` for a search path on which the name is none of the catalog's tables.
        """
        tenants = self._catalog.find_tenants(table, namesake=namesake)
        if tenants:
            return self._find_tenant(table, tenants)
        declared = self._catalog.find_table(table)
        if declared is None and namesake:
            declared = self._catalog.find_namesake(table)
        if declared is None:
            return None
        bound = self._binding.types[declared.table]
        schema = self._translate(declared.table.schema)
        if declared.table.schema in self._translated and schema != bound.live.schema:
            raise _refuse_schema(bound.live.qualified, schema)
        (name,) = qualify([declared.table.name], schema)
        return Place(bound, name)

    def _translate(self, schema: str | None) -> str | None:
        if schema not in self._translated:
            return schema
        return self._translated[schema] or self._connection.dialect.default_schema_name

    def _find_tenant(self, table: sa.Table, tenants: Tenants) -> Place | None:
        if table.schema in self._translated:
            schema = self._translate(table.schema)
            declared = tenants.get(schema or "")
            if declared is None:
                raise _refuse_schema(table.name, schema)
            (name,) = qualify([table.name], schema)
            return Place(self._binding.types[declared.table], name)
        (name,) = qualify([table.name], None)
        path = find_path(self._connection)
        oid = self._read_path(path).get(table.name)
        if oid is None:
            # The database says that there is no such table.
            return None
        bound = self._binding.by_oid.get(oid)
        if bound is None or bound.declared not in tenants.values():
            raise _refuse_other(self._connection, table.name, oid)
        return Place(bound, name, asked=path is None)

    def _read_path(self, path: str | None) -> Mapping[str, int | None]:
        """What the names of tenants' tables mean now."""
        known = self._recorder.routes.get(path)
        if known is None:
            names = sorted(self._catalog.tenant_names)
            with self._recorder.at_work():
                found = resolve_names(self._connection, [qualify([n], None)[0] for n in names])
            known = self._recorder.routes[path] = dict(zip(names, found, strict=True))
        return known


def find_translation(context: Any) -> Mapping[str | None, str | None]:
    """The `schema_translate_map` of an execution. A compiled statement serves several."""
    found: Mapping[str | None, str | None] = (
        context.execution_options.get("schema_translate_map") or {}
    )
    return found


def _refuse_schema(table: str, schema: str | None) -> NotCapturableError:
    return NotCapturableError(
        f"table {table} is written in schema {schema!r} by schema_translate_map, and the catalog "
        "does not have it there; its rows could not be logged, so the statement was not sent",
        hint=f"name the schemas of all tenants in the catalog: {_SCHEMAS}",
    )


def _refuse_other(connection: Connection, name: str, oid: int) -> UnloggedWriteError:
    found = find_name(connection, oid)
    there = "another table" if found is None else qualify([found[1]], found[0])[0]
    return UnloggedWriteError(
        f"{name} is {there} on this search_path, which is none of the catalog's schemas; its rows "
        "could not be logged, so the statement was not sent",
        hint=f"set search_path to a tenant's schema before it is written, and name those of all "
        f"tenants in the catalog: {_SCHEMAS}",
        # A table may have been replaced: the next transaction looks at the database anew.
        retryable=True,
    )
