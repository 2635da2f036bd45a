"""Tables of one model that are in several schemas, one for each tenant. Pure.

A model names such a table without a schema, and the schema is chosen when a statement is executed.
For the log each of them is a table of its own: with its type, its aggregates and its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import sqlalchemy as sa

from oplog.declared_type import DeclaredType, declare
from oplog.errors import ConfigurationError

Tenants = Mapping[str, DeclaredType]
"""The types of one table of the models, by schema."""


def check_schemas(schemas: Collection[str], tables: Iterable[sa.Table]) -> tuple[str, ...]:
    """The schemas of the tenants, each once; `ConfigurationError` for what cannot be meant."""
    if isinstance(schemas, str):
        raise ConfigurationError(
            f"schemas is the text {schemas!r}, not a list of names",
            hint=f"write schemas=[{schemas!r}]",
        )
    if not all(schemas):
        raise ConfigurationError(
            f"schemas has a name that is empty: {list(schemas)!r}",
            hint="give the names of schemas, such as schemas=['tenant_1', 'tenant_2']",
        )
    if schemas and all(table.schema for table in tables):
        raise ConfigurationError(
            "schemas are given, and every table of the models names its own",
            hint="schemas are for tables without one, which statements find in that of a tenant",
        )
    return tuple(dict.fromkeys(schemas))


def copy_tables(
    tables: Iterable[sa.Table], schemas: Iterable[str]
) -> dict[sa.Table, list[sa.Table]]:
    """Each table that has no schema, with a copy in each of these schemas.

    Copies refer to one another, and to copies of the tables that are in a schema anyway.
    """
    copies, several = sa.MetaData(), list(tables)
    for table in several:
        if table.schema:
            table.to_metadata(copies)
    return {
        table: [table.to_metadata(copies, schema=schema) for schema in schemas]
        for table in several
        if not table.schema
    }


def declare_tenant(
    model: sa.Table,
    table: sa.Table,
    *,
    aggregate: str | None,
    excluded: Mapping[str, str],
    secret: Collection[str],
) -> DeclaredType:
    """The type of one tenant's table. Its name and its aggregates begin with the schema."""
    schema = table.schema or ""
    return declare(
        f"{schema}.{model.name}",
        table,
        aggregate=None if aggregate is None else qualify_template(schema, aggregate),
        excluded=excluded,
        secret=secret,
        model=model,
    )


def qualify_template(schema: str, aggregate: str) -> str:
    """The aggregate template of a tenant: no two tenants share an aggregate."""
    escaped = schema.replace("{", "{{").replace("}", "}}")
    return f"{escaped}.{aggregate}"
