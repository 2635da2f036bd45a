"""What an application gives as its models: tables behind them, and names that it says of them.

Pure. What is neither a model nor a name of the models is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import DeclarativeBase, Mapper, registry

from oplog.errors import ConfigurationError, NotCapturableError

ModelSource: TypeAlias = type[DeclarativeBase] | sa.MetaData | registry
"""A declarative base (any object that has a `metadata` will do), a registry, or a `MetaData`."""
Models: TypeAlias = ModelSource | Iterable[ModelSource]
"""One or several of them."""


def list_own_tables(models: Models) -> list[sa.Table]:
    """Every table in the `MetaData` of the models as it is now, each once."""
    sources = list_sources(models)
    several = [one if isinstance(one, sa.MetaData) else one.metadata for one in sources]
    return list(dict.fromkeys(table for one in several for table in one.tables.values()))


def list_model_tables(models: Models) -> list[sa.Table]:
    """The same, and tables of another `MetaData` that classes of the models are mapped to."""
    found = dict.fromkeys(list_own_tables(models))
    for one in list_sources(models):
        known = one if isinstance(one, registry) else getattr(one, "registry", None)
        if isinstance(known, registry):
            mapped = (table for mapper in known.mappers for table in mapper.tables)
            found.update(dict.fromkeys(table for table in mapped if isinstance(table, sa.Table)))
    return list(found)


def list_sources(models: Models) -> tuple[Any, ...]:
    """The models one by one; `ConfigurationError` for what is none of them."""
    return tuple(_iterate_sources(models))


def _iterate_sources(models: Any) -> Iterator[Any]:
    one = [models] if _has_tables(models) or not isinstance(models, Iterable) else models
    for source in one:
        if not _has_tables(source):
            raise ConfigurationError(
                f"{source!r:.100} is neither a declarative base nor a MetaData",
                hint="give Base, Base.metadata, Base.registry, or a list of them",
            )
        yield source


def _has_tables(source: Any) -> bool:
    return isinstance(source, sa.MetaData) or isinstance(
        getattr(source, "metadata", None), sa.MetaData
    )


def refuse_text(names: Collection[str]) -> Collection[str]:
    """The names; `ConfigurationError` for one text, which would be read letter by letter."""
    if isinstance(names, str):
        raise ConfigurationError(
            f"secret is the text {names!r}, not a list of names", hint=f"write secret=[{names!r}]"
        )
    return names


def check_names(what: str, given: Iterable[str], tables: Collection[str]) -> None:
    """Raise `ConfigurationError` for a name that is no table of the models."""
    unknown = sorted(set(given) - set(tables))
    if unknown:
        raise ConfigurationError(
            f"{what} names {', '.join(unknown)}, which the models do not have",
            hint=f"the tables are {', '.join(sorted(tables))}",
        )


def split_paths(
    what: str, paths: Mapping[str, str], tables: Mapping[str, sa.Table]
) -> dict[str, dict[str, str]]:
    """Columns by table, with what each path stands for."""
    split: dict[str, dict[str, str]] = {}
    for path, reason in paths.items():
        table, _, column = path.rpartition(".")
        if table not in tables:
            raise ConfigurationError(
                f"{what} names {path!r}, and {table!r} is not a table of the models",
                hint="write 'table.column'",
            )
        if what == "exclude":
            check_excluded(tables[table], column)
        split.setdefault(table, {})[column] = reason
    return split


def check_excluded(table: sa.Table, column: str) -> None:
    """Raise `ConfigurationError` for a column that is not there, or is in the primary key."""
    names = {c.name for c in table.columns}
    if column not in names:
        raise ConfigurationError(
            f"exclude names {table.fullname}.{column}, and the table has no such column",
            hint=f"its columns are {', '.join(sorted(names))}",
        )
    if column in {c.name for c in table.primary_key}:
        raise ConfigurationError(
            f"exclude names {table.fullname}.{column}, which is in the primary key",
            hint="without its key a row cannot be identified; leave the table untracked instead",
        )


def find_local_table(model: Any) -> sa.Table:
    """The one table of a mapped class; `NotCapturableError` if it has none."""
    mapper = _inspect(model)
    if not isinstance(mapper.local_table, sa.Table):
        raise NotCapturableError(
            f"{model.__name__} is mapped to {type(mapper.local_table).__name__}, not to a table",
            hint="register the class of each table separately",
        )
    return mapper.local_table


def list_mapped_tables(model: Any) -> list[Any]:
    """Every table of a mapped class: several with joined inheritance."""
    return list(_inspect(model).tables)


def _inspect(model: Any) -> Mapper[Any]:
    try:
        found = sa.inspect(model)
    except NoInspectionAvailable:
        found = None
    if not isinstance(found, Mapper):
        raise NotCapturableError(
            f"{getattr(model, '__name__', model)!r} is not a mapped class",
            hint="map it with SQLAlchemy's ORM, or give its Table",
        )
    return found
