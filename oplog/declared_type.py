"""`DeclaredType`: a table that the application wants logged, and how. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from google.protobuf import message
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError

from oplog.errors import ConfigurationError, NotCapturableError
from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.message import ExpectedField
from oplog.value import Kind, declared_kind

SYSTEM_COLUMNS = frozenset({"cmax", "cmin", "ctid", "tableoid", "xmax", "xmin"})
"""Columns that every table has by itself, and no table by declaration. Models name them to count
versions of rows, and they mean nothing in another database."""
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class DeclaredType:
    """A table that the application wants logged."""

    type_name: str
    table: sa.Table
    template: AggregateTemplate
    excluded: Mapping[str, str] = field(default_factory=dict)
    message_class: type[message.Message] | None = None
    revision: int | None = None
    secret: frozenset[str] = frozenset()
    """Columns whose values the sizes of sealed bytes must not tell."""
    searchable: frozenset[str] = frozenset()
    """Columns whose values are found by tokens, without opening what does not have them."""
    model: sa.Table | None = None
    """The table of the models, if `table` is one of several that they stand for."""

    @property
    def written(self) -> sa.Table:
        """The table as the application's statements have it."""
        return self.table if self.model is None else self.model

    def list_columns(self) -> list[sa.Column[Any]]:
        """Return the logged columns: neither excluded nor computed by the database."""
        aside = SYSTEM_COLUMNS.union(self.excluded)
        return [c for c in self.table.columns if c.computed is None and c.name not in aside]

    def list_fields(self) -> list[ExpectedField]:
        """Return the fields that the application's own message needs, one per logged column."""
        return [
            ExpectedField(
                column.name, self.find_kind(column), isinstance(column.type, sa.BigInteger)
            )
            for column in self.list_columns()
        ]

    def find_kind(self, column: sa.Column[Any]) -> Kind:
        """Return the kind of the column's values; `NotCapturableError` without an SQL type."""
        try:
            sql_type = column.type.compile(dialect=_DIALECT)
        except CompileError as cause:
            raise NotCapturableError(
                f"column {self.table.fullname}.{column.name} has no SQL type: {cause}",
                hint="give the column a type, or list it in exclude={...} with the reason",
            ) from cause
        try:
            return declared_kind(sql_type)
        except NotCapturableError as cause:
            raise NotCapturableError(
                f"column {self.table.fullname}.{column.name}: {cause.args[0]}",
                hint=cause.hint or "list it in exclude={...} with the reason",
            ) from cause


def declare(
    type_name: str,
    table: sa.Table,
    *,
    aggregate: str | None,
    excluded: Mapping[str, str],
    secret: Collection[str],
    message_class: type[message.Message] | None = None,
    revision: int | None = None,
    model: sa.Table | None = None,
) -> DeclaredType:
    """The type of a table, checked; `aggregate` is the template, if it is not the usual one."""
    if aggregate is None:
        # A brace in a table's name is text, not the start of a column name.
        escaped = table.fullname.replace("{", "{{").replace("}", "}}")
        keys = "/".join(f"{{{column.name}}}" for column in table.primary_key)
        aggregate = f"{escaped}/{keys}"
    template = AggregateTemplate(aggregate)
    names = {column.name for column in table.columns}
    for name in template.columns:
        if name not in names or name in excluded or name in SYSTEM_COLUMNS:
            raise ConfigurationError(
                f"aggregate template {aggregate!r} names column {name!r}, which table "
                f"{table.fullname} does not {'log' if name in names else 'have'}",
                hint=f"its columns are {', '.join(sorted(names))}",
            )
    declared = DeclaredType(
        type_name,
        table,
        template,
        excluded={name: why for name, why in excluded.items() if name not in SYSTEM_COLUMNS},
        message_class=message_class,
        revision=revision,
        secret=frozenset(secret),
        model=model,
    )
    for column in declared.list_columns():
        declared.find_kind(column)
    _check_secret(declared)
    return declared


def _check_secret(declared: DeclaredType) -> None:
    logged = {column.name for column in declared.list_columns()}
    for name in sorted(declared.secret):
        if name not in logged:
            raise ConfigurationError(
                f"secret names {declared.table.fullname}.{name}, which is not logged",
                hint=f"its logged columns are {', '.join(sorted(logged))}",
            )
        if name in declared.template.columns:
            raise ConfigurationError(
                f"secret names {declared.table.fullname}.{name}, which is in the name of the row's "
                f"aggregate ({declared.template.text!r}): names are stored in clear text",
                hint="give the table a template without it: aggregates={...}",
            )


def mark_searchable(declared: DeclaredType, names: Collection[str]) -> DeclaredType:
    """The same type with these searchable columns; `ConfigurationError` for one that cannot be."""
    columns = {column.name: column for column in declared.list_columns()}
    for name in sorted(names):
        if name not in columns:
            raise ConfigurationError(
                f"searchable names {declared.table.fullname}.{name}, which is not logged",
                hint=f"its logged columns are {', '.join(sorted(columns))}",
            )
        if isinstance(columns[name].type, sa.Enum):
            raise ConfigurationError(
                f"searchable names {declared.table.fullname}.{name}, whose labels may be renamed: "
                "what was logged before would not be found",
                hint="leave it out: a search opens the records that it needs",
            )
    return replace(declared, searchable=declared.searchable.union(names))
