"""`TypeCatalog`: which tables are logged, under which type names and aggregates, and which not.

The catalog holds what the application declares, and needs no connection. `oplog.binding` compares
it with the database later. Tables and columns that cannot be logged exactly are refused by name
as early as they are known, before the first write.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from google.protobuf import message

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
from oplog.declared_type import DeclaredType, declare, mark_searchable
from oplog.errors import CatalogWarning, ConfigurationError, NotCapturableError, UnknownTypeError
from oplog.payload.message import check_message
from oplog.tenant_tables import (
    Tenants,
    check_schemas,
    copy_tables,
    declare_tenant,
    qualify_template,
)

__all__ = ["DeclaredType", "Step", "TypeCatalog"]

Step = Callable[[dict[str, Any]], dict[str, Any]]
"""A pure function from the columns of one revision to those of the next or previous one."""


class TypeCatalog:
    """The logged types by name: table, message, revision, aggregate. One per application."""

    learns = False
    """The tables come from the database, which is asked when it is first written to."""

    def __init__(self) -> None:
        self._types: dict[str, DeclaredType] = {}
        self._by_table: dict[sa.Table, DeclaredType] = {}
        self._tenants: dict[sa.Table, dict[str, DeclaredType]] = {}
        """Tables of the models that are in several schemas."""
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
        searchable: Collection[str] = (),
        schemas: Collection[str] = (),
    ) -> TypeCatalog:
        """Declare every table of `models` under its own name, unless listed in `untracked`.

        `aggregates` maps table names to templates (default `<table>/<primary key joined by
        />`; a constant groups the whole table). `untracked` maps table names, and `exclude`
        `table.column` names, to the reason. `secret` are `table.column` names: what is sealed
        with their rows is neither compressed nor stored in its exact size. `searchable` are such
        names too: records get keyed hashes of what they write there, for `Oplog.search`.

        With `schemas`, a table without a schema is one in each of these, chosen by `search_path`
        or `schema_translate_map` when a statement is executed; the names of its types and
        aggregates begin with the schema. Raises `ConfigurationError` for names that are not in
        the models, and `NotCapturableError` for a column that cannot be logged exactly.
        """
        catalog = cls()
        tables = {table.fullname: table for table in list_own_tables(models)}
        untracked, aggregates = dict(untracked or {}), dict(aggregates or {})
        for what, names in (("untracked", untracked), ("aggregates", aggregates)):
            check_names(what, names, tables)
        excluded = split_paths("exclude", exclude or {}, tables)
        secrets = split_paths("secret", dict.fromkeys(refuse_text(secret), ""), tables)
        catalog._untracked = untracked
        catalog._models = list_sources(models)
        schemas = check_schemas(schemas, tables.values())
        copies = copy_tables(tables.values(), schemas) if schemas else {}
        for name, table in tables.items():
            if name in untracked:
                continue
            given: dict[str, Any] = {
                "aggregate": aggregates.get(name),
                "excluded": excluded.get(name, {}),
                "secret": secrets.get(name, ()),
            }
            for copy in copies.get(table, ()):
                catalog._add_new(declare_tenant(table, copy, **given))
            if table not in copies:
                catalog._add_new(declare(name, table, **given))
        catalog._mark_searchable(searchable, tables)
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
        tenants = self._tenants.get(table, {})
        if tenants and aggregate:
            # Each of them would have the same aggregates.
            given = {schema: qualify_template(schema, aggregate) for schema in tenants}
        else:
            given = {}
        places = [(f"{schema}.{type_name}", one.table) for schema, one in tenants.items()]
        for name, place in places or [(type_name, table)]:
            self._register(
                name,
                place,
                message=message,
                revision=revision,
                aggregate=given.get(place.schema or "", aggregate),
                exclude=exclude,
                secret=secret,
            )

    def _register(
        self,
        type_name: str,
        table: sa.Table,
        *,
        message: type[message.Message],
        revision: int,
        aggregate: str | None,
        exclude: Mapping[str, str] | None,
        secret: Collection[str],
    ) -> None:
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
        declared = declare(
            type_name,
            table,
            aggregate=aggregate,
            excluded=excluded,
            secret=secrets,
            message_class=message,
            revision=revision,
            model=None if before is None else before.model,
        )
        if before is not None and before.searchable:
            declared = mark_searchable(declared, before.searchable)
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
        found = self._steps.get((type_name, from_revision, to_revision))
        declared = self._types.get(type_name)
        if found is not None or declared is None or declared.model is None:
            return found
        # What is declared of the model holds for all its tables.
        name = type_name.removeprefix(f"{declared.table.schema}.")
        return self._steps.get((name, from_revision, to_revision))

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

    def find_tenants(self, table: Any, *, namesake: bool = False) -> Tenants:
        """Return the types of a table of the models that is in several schemas; else none.

        With `namesake`, also those of another `Table` object that has only its name.
        """
        found = self._tenants.get(table)
        if found is None and namesake and getattr(table, "schema", None) is None:
            name = getattr(table, "name", None)
            found = next((t for model, t in self._tenants.items() if model.name == name), None)
        return found or {}

    @property
    def tenant_names(self) -> frozenset[str]:
        """The names of the tables that are in several schemas."""
        return frozenset(table.name for table in self._tenants)

    def find_namesake(self, table: Any) -> DeclaredType | None:
        """Return the type of the logged table that has this `Table`'s name and schema."""
        name = getattr(table, "name", None)
        schema = getattr(table, "schema", None)
        for declared in self._types.values():
            for one in (declared.table, declared.written):
                if (one.name, one.schema) == (name, schema):
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

        Also takes a `Table` or a type name; of a table in several schemas it gives all. Raises
        `UnknownTypeError` if none is logged.
        """
        if isinstance(model, str):
            found = [self._types[model]] if model in self._types else []
        else:
            tables = [model] if isinstance(model, sa.Table) else list_mapped_tables(model)
            found = [t for t in map(self._by_table.get, tables) if t is not None]
            found += [t for table in tables for t in self.find_tenants(table).values()]
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

    def _mark_searchable(self, searchable: Collection[str], tables: Mapping[str, sa.Table]) -> None:
        found = split_paths("searchable", dict.fromkeys(refuse_text(searchable), ""), tables)
        for declared in list(self._types.values()):
            names = found.get(declared.written.fullname)
            if names:
                self._add(mark_searchable(declared, names))

    def _add(self, declared: DeclaredType) -> None:
        self._types[declared.type_name] = declared
        self._by_table[declared.table] = declared
        if declared.model is not None:
            tenants = self._tenants.setdefault(declared.model, {})
            tenants[declared.table.schema or ""] = declared

    def _add_new(self, declared: DeclaredType) -> None:
        before = self._types.get(declared.type_name)
        if before is not None:
            raise ConfigurationError(
                f"{declared.type_name!r} is a table of the models, and one of a tenant as well",
                hint="leave out of schemas=[...] the schemas that models name themselves",
            )
        self._add(declared)
