"""Rows made up from the catalog: they satisfy types, NOT NULL, references, and most checks.

What the catalog does not tell, such as a check over several columns or a format that a migration
expects in a text, is found by trying: a row that the server refuses is drawn again. An
application gives `samples` for columns in which only it knows what is valid.
"""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from tests.histories.tables import Column, Reference, Table, sort_by_reference

TRIES = 8
NULLS = 0.2
DEFAULTS = 0.5
LENGTH = re.compile(r"\((\d+)(?:,(-?\d+))?\)")
Samples = Mapping[str, Sequence[str]]
"""Values by `table.column`, or by `*.column` for all tables."""
Drawn = dict[str, str | None]


class NoValueError(Exception):
    """There is no way known to draw a value."""


@dataclass
class Generator:
    """Draws rows. `counter` makes values distinct through the whole history."""

    samples: Samples = field(default_factory=dict)
    seed: int = 1
    counter: int = 100
    refused: dict[str, str] = field(default_factory=dict)
    """Tables that stayed empty, with the last reason."""
    own: dict[int, set[tuple[str, ...]]] = field(default_factory=dict)
    """Keys of the rows that were made here, by oid of the table; others are left as they are."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def draw_value(self, table: str, column: Column) -> str:
        """Text that the column's type reads. Raises `NoValueError` for a type that is unknown."""
        for name in (f"{table}.{column.name}", f"*.{column.name}"):
            if name in self.samples:
                return self.random.choice(self.samples[name])
        if column.labels:
            return self.random.choice(column.labels)
        self.counter += 1
        return draw_text(column.base, column.name, self.counter)

    def draw_row(self, connection: Connection, table: Table) -> Drawn:
        """Values for an INSERT; columns that are left out get their default."""
        row: Drawn = {}
        for reference in sorted(table.references, key=lambda one: -len(one.columns)):
            self._refer(connection, table, reference=reference, row=row)
        for column in table.columns.values():
            if column.name in row or column.generated or column.numbered:
                continue
            if column.has_default and self.random.random() < DEFAULTS:
                continue
            if not column.required and self.random.random() < NULLS:
                row[column.name] = None
            else:
                row[column.name] = self.draw_value(table.name, column)
        return row

    def _refer(
        self, connection: Connection, table: Table, *, reference: Reference, row: Drawn
    ) -> None:
        pairs = list(zip(reference.columns, reference.parent_columns, strict=True))
        known = {theirs: row[own] for own, theirs in pairs if row.get(own) is not None}
        optional = [one for one, _ in pairs if not table.columns[one].required and one not in row]
        if optional and self.random.random() < NULLS:
            row.update(dict.fromkeys(optional))
            return
        condition = " AND ".join(f"{quote(one)}::text = :p{n}" for n, one in enumerate(known))
        found = connection.execute(
            sa.text(
                f"SELECT {', '.join(f'{quote(theirs)}::text' for _, theirs in pairs)}"
                f" FROM {quote(reference.parent)} WHERE {condition or 'true'} ORDER BY 1 LIMIT 20"
            ),
            {f"p{n}": value for n, value in enumerate(known.values())},
        ).all()
        if found:
            for (own, _), value in zip(pairs, self.random.choice(found), strict=True):
                row.setdefault(own, value)
        elif optional:
            row.update(dict.fromkeys(optional))
        else:
            raise NoValueError(f"no row of {reference.parent} to refer to")

    # -- statements ---------------------------------------------------------------------------

    def fill(self, connection: Connection, tables: Mapping[str, Table], *, rows: int) -> int:
        """Insert rows until each table has as many as `rows`, but two for each table at most."""
        self.refused.clear()
        made = sum(
            self._fill_table(connection, one, rows=rows) for one in sort_by_reference(tables)
        )
        # Of tables that refer to each other in a circle one had no row to refer to.
        again = [tables[name] for name in self.refused if name in tables]
        return made + sum(self._fill_table(connection, one, rows=rows) for one in again)

    def _fill_table(self, connection: Connection, table: Table, *, rows: int) -> int:
        counted = connection.exec_driver_sql(
            f"SELECT count(*) FROM {quote(table.name, '%%')}"
        ).scalar_one()
        wanted = min(2, rows - counted) if counted < rows else self.random.random() < NULLS
        made = sum(self.insert(connection, table) for _ in range(int(wanted)))
        if counted + made:
            self.refused.pop(table.name, None)
        return made

    def insert(self, connection: Connection, table: Table) -> bool:
        """Try to insert one row; if it is refused, note why."""
        reason = ""
        for _ in range(TRIES):
            try:
                row = self.draw_row(connection, table)
            except NoValueError as error:
                self.refused[table.name] = str(error)
                return False
            reason = self._try_insert(connection, table, row)
            if not reason:
                self.refused.pop(table.name, None)
                return True
        self.refused[table.name] = reason
        return False

    def change(self, connection: Connection, tables: Mapping[str, Table]) -> int:
        """Update one row of each table, and of some tables all rows at once."""
        changed = 0
        for table in tables.values():
            fixed = {*table.key, *(one for r in table.references for one in r.columns)}
            free = [
                one
                for one in table.columns.values()
                if one.name not in fixed and not one.generated and not one.numbered
            ]
            key = self._pick(connection, table)
            if not free or key is None:
                continue
            others = self._read_keys(connection, table) - self.own[table.oid]
            chosen = self.random.sample(free, min(len(free), self.random.randint(1, 3)))
            everywhere = not others and self.random.random() < NULLS
            changed += self._change_columns(
                connection, table, columns=chosen, key={} if everywhere else key
            )
        return changed

    def _change_columns(
        self, connection: Connection, table: Table, *, columns: Sequence[Column], key: Drawn
    ) -> bool:
        values: Drawn = {}
        for column in columns:
            try:
                null = not column.required and self.random.random() < NULLS
                values[column.name] = None if null else self.draw_value(table.name, column)
            except NoValueError:
                return False
        parts = [
            f"{quote(name)} = {_cast(table.columns[name], f'v{n}')}"
            for n, name in enumerate(values)
        ]
        sql = f"UPDATE {quote(table.name)} SET {', '.join(parts)}{_match(key)}"
        given = {f"v{n}": value for n, value in enumerate(values.values())}
        return not self._try(connection, sql, given | _name_key(key))

    def remove(self, connection: Connection, tables: Mapping[str, Table], *, above: int) -> int:
        """Delete a row of each table that has more than `above`, children first."""
        removed = 0
        for table in reversed(sort_by_reference(tables)):
            counted = connection.exec_driver_sql(
                f"SELECT count(*) FROM {quote(table.name, '%%')}"
            ).scalar_one()
            key = self._pick(connection, table) if counted > above else None
            if key:
                sql = f"DELETE FROM {quote(table.name)}{_match(key)}"
                removed += not self._try(connection, sql, _name_key(key))
        return removed

    def forget(self, connection: Connection, table: Table, *, every: bool = False) -> None:
        """Delete the rows that were made here, or all, as far as nothing refers to them."""
        if every:
            self._try(connection, f"DELETE FROM {quote(table.name)}", {})
        for key in sorted(self.own.get(table.oid, set())):
            named: Drawn = dict(zip(table.key, key, strict=False))
            if len(named) == len(key):
                sql = f"DELETE FROM {quote(table.name)}{_match(named)}"
                self._try(connection, sql, _name_key(named))

    def _read_keys(self, connection: Connection, table: Table) -> set[tuple[str, ...]]:
        listed = ", ".join(f"{quote(one)}::text" for one in table.key)
        sql = sa.text(f"SELECT {listed} FROM {quote(table.name)}")
        return {tuple(row) for row in connection.execute(sql)}

    def _pick(self, connection: Connection, table: Table) -> Drawn | None:
        """The key of a row that was made here."""
        if not table.key or table.oid not in self.own:
            return None
        self.own[table.oid] &= self._read_keys(connection, table)
        keys = sorted(self.own[table.oid])
        return dict(zip(table.key, self.random.choice(keys), strict=True)) if keys else None

    def _try_insert(self, connection: Connection, table: Table, row: Drawn) -> str:
        sql, given = _make_insert(table, row)
        if not table.key:
            return self._try(connection, sql, given)
        listed = ", ".join(f"{quote(one)}::text" for one in table.key)
        found: list[tuple[str, ...]] = []
        reason = self._try(connection, f"{sql} RETURNING {listed}", given, found)
        self.own.setdefault(table.oid, set()).update(found)
        return reason

    def _try(
        self,
        connection: Connection,
        sql: str,
        given: Drawn,
        found: list[tuple[str, ...]] | None = None,
    ) -> str:
        """Run the statement; return why the server refuses the row, or nothing."""
        try:
            with connection.begin_nested():
                done = connection.execute(sa.text(sql), given)
                if found is not None:
                    found += [tuple(row) for row in done]
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", "") or ""
            # Classes of what is wrong with a row; anything else is no fault of the generator.
            if isinstance(error, IntegrityError) or state[:2] in {"22", "23", "27", "P0"}:
                return str(error.orig).splitlines()[0]
            raise
        return ""


def quote(name: str, percent: str = "%") -> str:
    """The name as an identifier in SQLAlchemy's text."""
    return '"' + name.replace('"', '""').replace(":", r"\:").replace("%", percent) + '"'


def _cast(column: Column, parameter: str) -> str:
    return f"CAST(CAST(:{parameter} AS text) AS {column.type_name})"


def _make_insert(table: Table, row: Drawn) -> tuple[str, Drawn]:
    if not row:
        return f"INSERT INTO {quote(table.name)} DEFAULT VALUES", {}
    names = ", ".join(quote(one) for one in row)
    values = ", ".join(_cast(table.columns[name], f"v{n}") for n, name in enumerate(row))
    sql = f"INSERT INTO {quote(table.name)} ({names}) VALUES ({values})"
    return sql, {f"v{n}": value for n, value in enumerate(row.values())}


def _match(key: Drawn) -> str:
    parts = [f"{quote(name)}::text = :k{n}" for n, name in enumerate(key)]
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _name_key(key: Drawn) -> Drawn:
    return {f"k{n}": value for n, value in enumerate(key.values())}


def draw_text(base: str, name: str, number: int) -> str:
    """A value of a type, as text. Raises `NoValueError` for a type that is unknown."""
    if base.endswith("[]"):
        inner = draw_text(base[:-2], name, number).replace("\\", "\\\\").replace('"', '\\"')
        return f'{{"{inner}"}}'
    size = LENGTH.search(base)
    plain = LENGTH.sub("", base).strip()
    if plain in {"character varying", "character", "text", "citext", "name"}:
        return f"{name}-{number}"[-int(size[1]) if size else -10_000 :]
    maker = MAKERS.get(plain)
    if maker is None:
        raise NoValueError(f"no values known of type {base}")
    if plain == "numeric" and size:
        whole = int(size[1]) - int(size[2] or 0)
        return str(number % 10 ** max(whole, 0)) if whole > 0 else "0"
    return maker(number)


MAKERS: dict[str, Callable[[int], str]] = {
    "smallint": lambda n: str(n % 32_000),
    "integer": str,
    "bigint": str,
    "numeric": lambda n: f"{n}.50",
    "real": lambda n: f"{n}.25",
    "double precision": lambda n: f"{n}.125",
    "boolean": lambda n: "true" if n % 2 else "false",
    "date": lambda n: f"2021-03-{n % 28 + 1:02}",
    "time without time zone": lambda n: f"10:{n % 60:02}:00",
    "time with time zone": lambda n: f"10:{n % 60:02}:00+00",
    "timestamp without time zone": lambda n: f"2021-03-{n % 28 + 1:02} 10:{n % 60:02}:00.{n:06}",
    "timestamp with time zone": lambda n: f"2021-03-{n % 28 + 1:02} 10:{n % 60:02}:00.{n:06}+00",
    "interval": lambda n: f"{n} seconds",
    "uuid": lambda n: str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))),
    "json": lambda n: json.dumps({"n": n}),
    "jsonb": lambda n: json.dumps({"n": n}),
    "bytea": lambda n: f"\\x{n:08x}",
    "inet": lambda n: f"10.0.{n // 250 % 250}.{n % 250}",
    "cidr": lambda n: f"10.{n // 250 % 250}.{n % 250}.0/24",
    "macaddr": lambda n: f"08:00:2b:01:{n // 250 % 250:02x}:{n % 250:02x}",
    "tsvector": lambda n: f"'word{n}'",
    "oid": str,
    "xml": lambda n: f"<n>{n}</n>",
    "int4range": lambda n: f"[{n},{n + 1})",
    "tstzrange": lambda n: f"[2021-03-{n % 28 + 1:02},)",
}
"""How a value of each type is made from a number."""
