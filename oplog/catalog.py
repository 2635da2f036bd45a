"""`TypeCatalog`: which tables are logged, under which type names and aggregates, and which not.

The catalog holds what the application declares, and needs no connection. `oplog.binding` compares
it with the database later. Tables and columns that cannot be logged exactly are refused by name
as early as they are known, before the first write.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from google.protobuf import message
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError

from oplog.declared_models import (
    Models,
    check_excluded,
    check_names,
    find_local_table,
    list_mapped_tables,
    list_model_tables,
    list_own_tables,
    list_sources,
    refuse_text,
    split_paths,
)
from oplog.errors import CatalogWarning, ConfigurationError, NotCapturableError, UnknownTypeError
from oplog.payload.aggregate_template import AggregateTemplate
from oplog.payload.message import ExpectedField, check_message
from oplog.value import Kind, declared_kind

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

Step = Callable[[dict[str, Any]], dict[str, Any]]
"""A pure function from the columns of one revision to those of the next or previous one."""


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

    def list_columns(self) -> list[sa.Column[Any]]:
        """Return the logged columns: neither excluded nor computed by the database."""
        return [c for c in self.table.columns if c.computed is None and c.name not in self.excluded]

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


class TypeCatalog:
    """The logged types by name: table, message, revision, aggregate. One per application."""

    learns = False
    """The tables come from the database, which is asked when it is first written to."""

    def __init__(self) -> None:
        self._types: dict[str, DeclaredType] = {}
        self._by_table: dict[sa.Table, DeclaredType] = {}
        self._untracked: dict[str, str] = {}
        self._steps: dict[tuple[str, int, int], Step] = {}
        self._models: tuple[Any, ...] = ()
        """What the catalog was made from, which may have got more tables since."""

    @classmethod
    def from_models(
        cls,
        models: Models,
        *,
        aggregates: Mapping[str, str] | None = None,
        untracked: Mapping[str, str] | None = None,
        exclude: Mapping[str, str] | None = None,
        secret: Collection[str] = (),
    ) -> TypeCatalog:
        """Declare every table of `models` under its own name, unless listed in `untracked`.

        `aggregates` maps table names to templates (default `<table>/<primary key joined by
        />`; a constant groups the whole table). `untracked` maps table names, and `exclude`
        `table.column` names, to the reason. `secret` are `table.column` names: what is sealed
        with their rows is neither compressed nor stored in its exact size. Raises
        `ConfigurationError` for names that are not in the models, and `NotCapturableError` for a
        column that cannot be logged exactly.
        """
        catalog = cls()
        tables = {table.fullname: table for table in list_own_tables(models)}
        untracked, aggregates = dict(untracked or {}), dict(aggregates or {})
        check_names("untracked", untracked, tables)
        check_names("aggregates", aggregates, tables)
        excluded = split_paths("exclude", exclude or {}, tables)
        secrets = split_paths("secret", dict.fromkeys(refuse_text(secret), ""), tables)
        catalog._untracked = untracked
        catalog._models = list_sources(models)
        for name, table in tables.items():
            if name not in untracked:
                declared = _declare(
                    name,
                    table,
                    aggregate=aggregates.get(name),
                    excluded=excluded.get(name, {}),
                    secret=secrets.get(name, ()),
                )
                catalog._add(declared)
        return catalog

    def register(
        self,
        type_name: str,
        model: type[Any] | sa.Table,
        *,
        message: type[message.Message],
        revision: int = 1,
        aggregate: str | None = None,
        exclude: Mapping[str, str] | None = None,
        secret: Collection[str] = (),
    ) -> None:
        """Log the table of `model` under `type_name` with a compiled protobuf message.

        Replaces the type that `from_models` derived for the same table. Raises
        `NotCapturableError` for a class that is not mapped to one table and for a field that
        cannot hold its column, `ConfigurationError` for a logged column without a field.
        """
        table = model if isinstance(model, sa.Table) else find_local_table(model)
        if revision < 1:
            raise ConfigurationError(
                f"type {type_name!r} has revision {revision}", hint="count revisions from 1"
            )
        before = self._by_table.get(table)
        excluded, secrets = dict(exclude or {}), {*refuse_text(secret)}
        if before is not None:
            del self._types[before.type_name]
            excluded, secrets = {**before.excluded, **excluded}, {*before.secret, *secrets}
            aggregate = aggregate or before.template.text
        if type_name in self._types:
            raise ConfigurationError(
                f"type name {type_name!r} is taken by table "
                f"{self._types[type_name].table.fullname}",
                hint="choose another name; type names are stored in the log and cannot change",
            )
        for name in excluded:
            check_excluded(table, name)
        declared = _declare(
            type_name,
            table,
            aggregate=aggregate,
            excluded=excluded,
            secret=secrets,
            message_class=message,
            revision=revision,
        )
        check_message(declared.table.fullname, message, columns=declared.list_fields())
        self._add(declared)

    def upcast(self, type_name: str, *, from_revision: int, step: Step) -> None:
        """Read entries of `from_revision` as the next revision, through `step`."""
        self._steps[type_name, from_revision, from_revision + 1] = step

    def downcast(self, type_name: str, *, to_revision: int, step: Step) -> None:
        """Read entries of the revision after `to_revision` as `to_revision`, through `step`."""
        self._steps[type_name, to_revision + 1, to_revision] = step

    @property
    def has_steps(self) -> bool:
        """Whether any step between revisions is declared."""
        return bool(self._steps)

    def find_step(self, type_name: str, from_revision: int, *, to_revision: int) -> Step | None:
        """Return the declared step between two adjacent revisions, or None."""
        return self._steps.get((type_name, from_revision, to_revision))

    @property
    def types(self) -> Mapping[str, DeclaredType]:
        """Declared types by name."""
        return self._types

    @property
    def untracked(self) -> Mapping[str, str]:
        """Tables that are not logged, with the reason."""
        return self._untracked

    @property
    def secret_types(self) -> frozenset[str]:
        """Types with columns that the sizes of sealed bytes must not tell."""
        return frozenset(name for name, declared in self._types.items() if declared.secret)

    def find_table(self, table: Any) -> DeclaredType | None:
        """Return the type of a table, or None if it is not logged."""
        return self._by_table.get(table)

    def find_namesake(self, table: Any) -> DeclaredType | None:
        """Return the type of the logged table that has this `Table`'s name and schema."""
        name = getattr(table, "name", None)
        schema = getattr(table, "schema", None)
        for declared in self._types.values():
            if (declared.table.name, declared.table.schema) == (name, schema):
                return declared
        return None

    def list_missing(self, models: Models | None = None) -> list[str]:
        """Names of tables of `models` that are neither in the catalog nor untracked, sorted.

        Without `models`, of those that the catalog was made from: what was mapped after that, by a
        module that was imported late or by automap. Another `Table` of a logged table's name counts
        as logged: writing through it is captured by guards, or refused.
        """
        tables = list_model_tables(self._models if models is None else models)
        return sorted(
            table.fullname
            for table in tables
            if table.fullname not in self._untracked
            and table not in self._by_table
            and self.find_namesake(table) is None
        )

    def narrow(self, type_names: Iterable[str]) -> TypeCatalog:
        """Return a catalog of these types only; `KeyError` for one that is not declared."""
        narrowed = TypeCatalog()
        for name in type_names:
            narrowed._add(self._types[name])
        return narrowed

    def check_namesake(self, table: Any) -> None:
        """Raise `NotCapturableError` if another `Table` object stands for a logged table.

        Its columns and types may differ from the catalog's, so its writes cannot be logged. Warns
        (`CatalogWarning`) of a table of the models that was mapped after the catalog was made.
        """
        declared = self.find_namesake(table)
        if declared is not None:
            raise NotCapturableError(
                f"table {declared.table.fullname} is written through a Table object that is "
                "not the catalog's",
                hint="use the mapped class or the Table that the catalog was made from",
            )
        if self._models and getattr(table, "fullname", None) in self.list_missing():
            warnings.warn(
                f"table {table.fullname} is written and not logged: it was mapped after the "
                "catalog was made from its models",
                CatalogWarning,
                stacklevel=2,
            )

    def find_types(self, model: Any) -> list[DeclaredType]:
        """Return the types that hold a mapped class's rows (several for joined inheritance).

        Also takes a `Table` or a type name. Raises `UnknownTypeError` if none is logged.
        """
        if isinstance(model, str):
            found = [self._types[model]] if model in self._types else []
        elif isinstance(model, sa.Table):
            found = [t for t in [self._by_table.get(model)] if t]
        else:
            found = [t for table in list_mapped_tables(model) if (t := self._by_table.get(table))]
        if not found:
            raise UnknownTypeError(
                f"{getattr(model, '__name__', model)!r} is not a type of this log",
                hint=f"the catalog has {', '.join(sorted(self._types)) or 'no types'}",
            )
        return found

    def check_keys(self) -> None:
        """Raise `NotCapturableError` for tables without a primary key."""
        unkeyed = sorted(t.table.fullname for t in self._types.values() if not t.table.primary_key)
        if unkeyed:
            raise NotCapturableError(
                f"no primary key: {', '.join(unkeyed)}",
                hint="declare one (for an association table primary_key=True on both columns), "
                'or list the table in untracked={...: "reason"}',
            )

    def _add(self, declared: DeclaredType) -> None:
        self._types[declared.type_name] = declared
        self._by_table[declared.table] = declared


def _declare(
    type_name: str,
    table: sa.Table,
    *,
    aggregate: str | None,
    excluded: Mapping[str, str],
    secret: Collection[str],
    message_class: type[message.Message] | None = None,
    revision: int | None = None,
) -> DeclaredType:
    if aggregate is None:
        # A brace in a table's name is text, not the start of a column name.
        escaped = table.fullname.replace("{", "{{").replace("}", "}}")
        keys = "/".join(f"{{{column.name}}}" for column in table.primary_key)
        aggregate = f"{escaped}/{keys}"
    template = AggregateTemplate(aggregate)
    names = {column.name for column in table.columns}
    for name in template.columns:
        if name not in names or name in excluded:
            raise ConfigurationError(
                f"aggregate template {aggregate!r} names column {name!r}, which table "
                f"{table.fullname} does not {'log' if name in names else 'have'}",
                hint=f"its columns are {', '.join(sorted(names))}",
            )
    declared = DeclaredType(
        type_name,
        table,
        template,
        excluded=dict(excluded),
        message_class=message_class,
        revision=revision,
        secret=frozenset(secret),
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
