"""Which types a model stands for on a connection.

Models may leave the schema of a table to the connection. A row of one tenant is never shown as that
of another: where the connection means a table that is not the log's, the question is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from oplog.catalog import DeclaredType, TypeCatalog
from oplog.errors import ConfigurationError
from oplog.postgres.namesake import Known, refuse_mistaken, resolve_names
from oplog.postgres.quoting import qualify
from oplog.reading.reader import RecordReader
from oplog.reading.type_match import match_type


def choose_model_types(
    catalog: TypeCatalog, connection: Connection | None, model: Any
) -> list[DeclaredType]:
    """The types of a mapped class, `Table` or type name; of a tenant's table that which is meant.

    `schema_translate_map` or `search_path` of the connection says which that is. Raises
    `UnknownTypeError` if none is logged, and `ConfigurationError` if none of them is meant.
    """
    types = catalog.find_types(model)
    if isinstance(model, str):
        return types
    chosen: dict[sa.Table, DeclaredType] = {}
    for declared in types:
        if declared.model is None or declared.table is model:
            chosen[declared.table] = declared
        elif declared.model not in chosen:
            tenants = catalog.find_tenants(declared.model)
            schema = _find_schema(connection, declared.model, list(tenants))
            if schema is None or schema not in tenants:
                names = ", ".join(one.type_name for one in tenants.values())
                raise ConfigurationError(
                    f"table {declared.model.name} is one in each of several schemas, and the "
                    f"connection means none of the types {names}",
                    hint="give the name of the type, or a connection with the search_path or "
                    "schema_translate_map of the tenant",
                )
            chosen[declared.model] = tenants[schema]
    return list(chosen.values())


def _find_schema(
    connection: Connection | None, model: sa.Table, schemas: Sequence[str]
) -> str | None:
    """The schema that the connection means, if it is one of these."""
    if connection is None:
        return None
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    if None in translated:
        found: str | None = translated[None] or connection.dialect.default_schema_name
        return found
    names = [qualify([model.name], schema)[0] for schema in (None, *schemas)]
    meant, *oids = resolve_names(connection, names)
    return schemas[oids.index(meant)] if meant is not None and meant in oids else None


def check_model_tables(
    connection: Connection | None, types: Sequence[DeclaredType], reader: RecordReader
) -> None:
    """Raise `SchemaDriftError` if the connection means another table than the log has.

    Only for models that do not name a schema. A table that is gone was replaced.
    """
    known: list[Known] = []
    for declared in types:
        shape = match_type(reader.types.latest, declared)
        if shape is not None and declared.table.schema is None:
            (name,) = qualify([declared.table.name], None)
            known += [Known(shape.type_name, name, n.database, n.table) for n in shape.numbers]
    if known and connection is not None:
        refuse_mistaken(connection, known)
