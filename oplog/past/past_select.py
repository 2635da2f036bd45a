"""A SELECT over tables as they were: each stands in a WITH clause under its own name.

SQLAlchemy renders every table with a schema that does not exist, by `schema_translate_map`, so that
none of them is read live by mistake. Those schemas are taken out again just before the statement
goes to the driver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.sql import visitors

from oplog.errors import ConfigurationError
from oplog.past.past_relation import Relation

Asked: TypeAlias = "sa.Select[Any] | sa.CompoundSelect[Any]"
"""`select(...)`, and what `union` and its kin make of several."""

_PREFIX = "oplog_then_"
_REFERENCE = re.compile(_PREFIX + r'([0-9]+)_\.("(?:[^"]|"")+"|[^\W\d][\w$]*)')


@dataclass(frozen=True, slots=True)
class Reference:
    """A table of the statement: as SQLAlchemy knows it, and as the statement spells it."""

    table: sa.Table
    number: int
    spelled: str


@dataclass(frozen=True, slots=True)
class PastSelect:
    """A statement, the tables that it names, and the schemas under which it names them."""

    statement: Asked
    references: Sequence[Reference]
    schemas: Mapping[str | None, str]

    def name(self, reference: Reference) -> str:
        """What a table is called in the WITH clause: by its own name unless two share it."""
        alike = [one for one in self.references if one.spelled == reference.spelled]
        if len(alike) == 1:
            return reference.spelled
        bare = reference.spelled.strip('"')
        return f'"{bare}_{reference.number}"'

    def run(
        self, connection: Connection, relations: Mapping[Reference, Relation], *, stream: bool
    ) -> Iterator[dict[str, Any]]:
        """The statement's rows, over the relations of its tables."""
        names = {(one.number, one.spelled): self.name(one) for one in self.references}
        tables = ", ".join(
            f"{self.name(one)} AS NOT MATERIALIZED ({relation.sql})"
            for one, relation in relations.items()
        )
        more = {k: v for relation in relations.values() for k, v in relation.parameters.items()}

        def rewrite(statement: str) -> str:
            body = _REFERENCE.sub(lambda m: names[int(m[1]), m[2]], statement)
            return f"WITH {tables} ({body})"

        options = {"schema_translate_map": dict(self.schemas), "stream_results": stream}
        with _rewriting(connection, rewrite, more):
            result = connection.execute(self.statement, execution_options=options)
        with result:
            columns = tuple(result.keys())
            for row in result:
                yield dict(zip(columns, row, strict=True))


def read_select(statement: Asked, connection: Connection, known: Iterable[sa.Table]) -> PastSelect:
    """What a statement asks for; `known` are the tables that the log may have.

    `ConfigurationError` for a statement that names no table, or names one by text alone.
    """
    if getattr(statement, "_for_update_arg", None) is not None:
        raise ConfigurationError(
            "rows of the past cannot be locked", hint="leave out with_for_update()"
        )
    tables = {(one.schema, one.name): one for one in known}
    for element in visitors.iterate(statement):
        if isinstance(element, sa.Table):
            tables |= {(t.schema, t.name): t for t in element.metadata.tables.values()}
            tables.setdefault((element.schema, element.name), element)
        elif isinstance(element, sa.TableClause):
            raise ConfigurationError(
                f"the select names {element.name} by its name alone, which would be read as it "
                "is now",
                hint="use the mapped class or the Table",
            )
    numbered = sorted({schema for schema, _ in tables if schema is not None})
    by_number: Sequence[str | None] = (None, *numbered)
    schemas: dict[str | None, str] = {
        schema: f"{_PREFIX}{number}_" for number, schema in enumerate(by_number)
    }
    text = str(
        statement.compile(
            dialect=connection.dialect, schema_translate_map=schemas, render_schema_translate=True
        )
    )
    prepare = connection.dialect.identifier_preparer.quote
    by_spelling = {(t.schema, prepare(t.name)): t for t in tables.values()}
    found = {(int(m[1]), m[2]) for m in _REFERENCE.finditer(text)}
    references = [
        Reference(by_spelling[by_number[number], spelled], number, spelled)
        for number, spelled in sorted(found)
    ]
    if not references:
        raise ConfigurationError(
            "the select names no table", hint="select from mapped classes, or from Table objects"
        )
    return PastSelect(statement, references, schemas)


@contextmanager
def _rewriting(connection: Connection, rewrite: Any, more: Mapping[str, Any]) -> Iterator[None]:
    """Let the statement with our schemas in it go to the driver as `rewrite` makes it."""

    def before(*given: Any) -> tuple[str, Any]:
        # As SQLAlchemy calls it: connection, cursor, statement, parameters, context, many.
        statement, parameters = given[2:4]
        if _REFERENCE.search(statement) is None:
            return statement, parameters
        return rewrite(statement), {**parameters, **more}

    event.listen(connection, "before_cursor_execute", before, retval=True)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", before)
