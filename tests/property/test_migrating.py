"""However migrations, writes, notes and restores follow one another, the log tells every position.

The table is kept in Python as well: columns by name, and rows as the texts that SELECT gives. Set
OPLOG_TEST_SEED to explore; without it every run does the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import registry

from oplog import Keyring
from oplog.errors import OplogError, SchemaChangedError
from tests.databases import Cluster, FreshDatabase
from tests.evolved import AGAIN, Application, Copies, Copy, assert_same, copy_schema, repr_sorted
from tests.logged import run
from tests.postgres.archived import open_memory
from tests.sampling import Sample

pytestmark = [pytest.mark.postgres, pytest.mark.property]

SEED = os.environ.get("OPLOG_TEST_SEED")
NAMES = ("a", "b", "c", "d")
TABLES = ("acct", "ledger")
Text = str | None


def plus_one(text: str) -> str:
    return str(int(text) + 1)


CONVERSIONS: dict[str, dict[str, tuple[str, Callable[[str], str]]]] = {
    "integer": {
        "bigint": ("{0}", str),
        "integer": ("{0} + 1", plus_one),
        "text": ("{0}::text", str),
        "numeric(12,1)": ("{0}", lambda text: f"{text}.0"),
    },
    "bigint": {
        "text": ("'n' || {0}", lambda text: f"n{text}"),
        "integer": ("0", lambda _: "0"),
    },
    "numeric(12,1)": {"text": ("{0}::text", str), "numeric(14,1)": ("{0}", str)},
    "numeric(14,1)": {"text": ("{0}::text", str)},
    "text": {
        "integer": ("length({0})", lambda text: str(len(text))),
        "text": ("{0} || '!'", lambda text: f"{text}!"),
        "character varying(60)": ("{0}", str),
    },
    "character varying(60)": {"text": ("{0}", str)},
}
VALUES = {
    "integer": st.integers(-99, 99).map(str),
    "bigint": st.integers(-(2**40), 2**40).map(str),
    "numeric(12,1)": st.integers(-99, 99).map(lambda n: f"{n}.5"),
    "numeric(14,1)": st.integers(-99, 99).map(lambda n: f"{n}.5"),
    "text": st.sampled_from(["", "x", "NULL", "é", "a\tb"]),
    "character varying(60)": st.sampled_from(["", "y"]),
}


@dataclass
class Table:
    """What the table should be."""

    name: str = "acct"
    types: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Text] = field(default_factory=dict)
    rows: dict[int, dict[str, Text]] = field(default_factory=dict)

    def copy(self) -> Copies:
        rows = [{"id": str(key), **row} for key, row in self.rows.items()]
        types = {"id": "integer", **self.types}
        return {self.name: Copy(types, sorted(rows, key=repr_sorted))}

    def set_all(self, column: str, make: Callable[[dict[str, Text]], Text]) -> None:
        for row in self.rows.values():
            row[column] = make(row)


class Migrating(RuleBasedStateMachine):
    """One table, its migrations, and processes with the models of different times."""

    cluster: ClassVar[Cluster]

    @initialize()
    def start(self) -> None:
        self.databases = [open_database(self.cluster)]
        self.engine = next(self.databases[0])
        self.keyring = Keyring.generate()
        run(self.engine, "CREATE TABLE acct (id int PRIMARY KEY, a int, b text DEFAULT 'b')")
        self.table = Table(types={"a": "integer", "b": "text"}, defaults={"b": "b"})
        self.ids = count(1)
        self.archive = open_memory()
        self.app = Application(self.engine, self.keyring)
        self.app.track()
        self.former: list[Application] = []
        self.past: list[tuple[int, Table]] = []
        self.altered = False
        for _ in range(3):
            self.insert("core", {})
        self.remember()

    def teardown(self) -> None:
        try:
            if hasattr(self, "app"):
                self.note(sync=True)
                self.verify()
                for place in range(len(self.past)):
                    self.replay(place)
        finally:
            for database in self.databases:
                database.close()  # type: ignore[attr-defined]

    # -- migrations -----------------------------------------------------------------------

    def alter(self, *statements: str) -> None:
        """Other processes know nothing of it."""
        run(self.engine, *statements)
        self.former = [*self.former, self.app][-2:]
        self.altered = True

    @precondition(lambda self: len(self.table.types) < len(NAMES))
    @rule(kind=st.sampled_from(["integer", "text"]), value=st.sampled_from([None, "7", "random"]))
    def add_column(self, kind: str, value: Text) -> None:
        name = next(name for name in NAMES if name not in self.table.types)
        default = f" DEFAULT '{value}'" if value else ""
        if value == "random":
            default = " DEFAULT (random() * 99)::int"
        self.alter(f"ALTER TABLE {self.table.name} ADD {name} {kind}{default}")
        self.table.types[name] = kind
        if value == "random":
            # What it was is known from the table alone.
            run(self.engine, f"ALTER TABLE {self.table.name} ALTER {name} DROP DEFAULT")
            live = {row["id"]: row[name] for row in self.read_live()[self.table.name].rows}
            for key, row in self.table.rows.items():
                row[name] = live[str(key)]
            return
        self.table.defaults[name] = value
        self.table.set_all(name, lambda _: value)

    @precondition(lambda self: len(self.table.types) > 1)
    @rule(pick=st.integers(0, 9))
    def drop_column(self, pick: int) -> None:
        name = self.choose(pick)
        self.alter(f"ALTER TABLE {self.table.name} DROP {name}")
        self.forget(name)

    @precondition(lambda self: self.table.types)
    @rule(pick=st.integers(0, 9), null=st.booleans())
    def replace_column(self, pick: int, null: bool) -> None:
        """Another column of the same name."""
        name = self.choose(pick)
        value = None if null else "5"
        default = "" if null else " NOT NULL DEFAULT 5"
        self.alter(
            f"ALTER TABLE {self.table.name} DROP {name}, ADD {name} int{default}",
            f"ALTER TABLE {self.table.name} ALTER {name} DROP NOT NULL",
        )
        self.forget(name)
        self.table.types[name], self.table.defaults[name] = "integer", value
        self.table.set_all(name, lambda _: value)

    @precondition(lambda self: 0 < len(self.table.types) < len(NAMES))
    @rule(pick=st.integers(0, 9))
    def rename_column(self, pick: int) -> None:
        name = self.choose(pick)
        new = next(one for one in NAMES if one not in self.table.types)
        self.alter(f"ALTER TABLE {self.table.name} RENAME {name} TO {new}")
        self.rename({name: new})

    @precondition(lambda self: len(self.table.types) > 1)
    @rule()
    def swap_columns(self) -> None:
        one, other = list(self.table.types)[:2]
        self.alter(
            f"ALTER TABLE {self.table.name} RENAME {one} TO t",
            f"ALTER TABLE {self.table.name} RENAME {other} TO {one}",
            f"ALTER TABLE {self.table.name} RENAME t TO {other}",
        )
        self.rename({one: other, other: one})

    @precondition(lambda self: self.table.types)
    @rule(pick=st.integers(0, 9), to=st.integers(0, 9))
    def convert_column(self, pick: int, to: int) -> None:
        name = self.choose(pick)
        ways = CONVERSIONS[self.table.types[name]]
        new = list(ways)[to % len(ways)]
        using, make = ways[new]
        self.alter(
            f"ALTER TABLE {self.table.name} ALTER {name} DROP DEFAULT, "
            f"ALTER {name} TYPE {new} USING {using.format(name)}"
        )
        self.table.types[name] = new
        self.table.defaults.pop(name, None)
        constant = using == "0"
        self.table.set_all(
            name,
            lambda row: "0" if constant else None if row[name] is None else make(str(row[name])),
        )

    @rule()
    def rename_table(self) -> None:
        new = next(name for name in TABLES if name != self.table.name)
        self.alter(f"ALTER TABLE {self.table.name} RENAME TO {new}")
        self.table.name = new

    @rule()
    def rewrite_table(self) -> None:
        """No change of anything."""
        apart = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        with apart.connect() as connection:
            connection.exec_driver_sql(f"VACUUM FULL {self.table.name}")

    # -- writes ---------------------------------------------------------------------------

    @rule(how=st.sampled_from(["core", "orm", "text"]), data=st.data())
    def write(self, how: str, data: Any) -> None:
        """A process of now; it notices by itself what was altered."""
        kind = data.draw(st.sampled_from(["insert", "update", "delete"]))
        names = sorted(self.table.types)
        values = {
            name: data.draw(st.none() | VALUES[self.table.types[name]])
            for name in names
            if data.draw(st.booleans())
        }
        self.renew()
        if kind == "insert" or not self.table.rows:
            self.insert(how, values)
            return
        key = data.draw(st.sampled_from(sorted(self.table.rows)))
        if kind == "update" and values:
            self.change(how, key, values)
        elif kind == "delete":
            self.delete(how, key)

    @precondition(lambda self: self.former)
    @rule(place=st.integers(0, 1), number=st.integers(0, 99))
    def write_as_before(self, place: int, number: int) -> None:
        """A process with former models, once all was noted: exactly, or not at all."""
        self.note(sync=False)
        former = self.former[place % len(self.former)]
        (table,) = former.metadata.tables.values()
        key = next(self.ids)
        names = [c.name for c in table.columns if isinstance(c.type, sa.Integer) and c.name != "id"]
        values = dict.fromkeys(names[:1], number)
        refused = 0
        while True:
            try:
                with former.sessions.begin() as session:
                    session.execute(table.insert().values(id=key, **values))
                break
            except SchemaChangedError:
                refused += 1
                if refused > 1:
                    raise
            except (DBAPIError, OplogError):
                self.former.remove(former)
                return
        row = {name: self.table.defaults.get(name) for name in self.table.types}
        self.table.rows[key] = row | {name: str(value) for name, value in values.items()}

    def insert(self, how: str, values: dict[str, Text]) -> None:
        key = next(self.ids)
        row = {name: self.table.defaults.get(name) for name in self.table.types}
        with self.in_session() as (session, table, model):
            typed = {"id": key, **self.type_values(values)}
            if how == "orm":
                instance = model()
                for name, value in typed.items():
                    setattr(instance, name, value)
                session.add(instance)
            elif how == "core":
                session.execute(table.insert().values(typed))
            else:
                names = ", ".join(typed)
                places = ", ".join(f":{name}" for name in typed)
                session.execute(
                    sa.text(f"INSERT INTO {table.name} ({names}) VALUES ({places})"), typed
                )
        if how == "orm":
            # The unit of work writes NULL only where it was set.
            row |= {name: None for name in values if values[name] is None}
        self.table.rows[key] = row | values

    def change(self, how: str, key: int, values: dict[str, Text]) -> None:
        with self.in_session() as (session, table, model):
            typed = self.type_values(values)
            if how == "orm":
                instance = session.get_one(model, key)
                for name, value in typed.items():
                    setattr(instance, name, value)
            elif how == "core":
                session.execute(table.update().where(table.c.id == key).values(typed))
            else:
                sets = ", ".join(f"{name} = :{name}" for name in typed)
                session.execute(sa.text(f"UPDATE {table.name} SET {sets} WHERE id = {key}"), typed)
        self.table.rows[key] |= values

    def delete(self, how: str, key: int) -> None:
        with self.in_session() as (session, table, model):
            if how == "orm":
                session.delete(session.get_one(model, key))
            elif how == "core":
                session.execute(table.delete().where(table.c.id == key))
            else:
                session.execute(sa.text(f"DELETE FROM {table.name} WHERE id = {key}"))
        del self.table.rows[key]

    # -- what is asked --------------------------------------------------------------------

    @rule(sync=st.booleans())
    def note(self, sync: bool) -> None:
        self.renew()
        with self.engine.connect() as connection:
            if sync:
                self.app.log.store_types(connection)
            else:
                self.app.log.note_changes(connection)

    @rule()
    def remember(self) -> None:
        """This position is asked for later."""
        self.note(sync=True)
        self.past = [*self.past, (self.app.find_position(), deepcopy(self.table))][-4:]

    @rule()
    def verify(self) -> None:
        self.note(sync=False)
        assert_same(self.read_live(), self.table.copy())
        with self.engine.connect() as connection:
            report = self.app.log.verify(connection)
        assert report.ok, report.differences

    @rule(place=st.integers(0, 3))
    def replay(self, place: int) -> None:
        """Now, or at a position that was remembered; whether or not the last DDL was noted."""
        position, then = self.past[place % len(self.past)]
        with self.engine.begin() as connection:
            self.app.log.replay(connection, into=AGAIN, through=position)
        assert_same(copy_schema(self.engine, AGAIN), then.copy())
        self.note(sync=False)
        assert_same(self.app.replay(), self.table.copy())

    @rule(snapshot=st.booleans())
    def publish(self, snapshot: bool) -> None:
        self.note(sync=True)
        if snapshot:
            self.app.log.snapshot(self.engine, self.archive)
        else:
            self.app.log.sync(self.engine, self.archive)

    @rule(place=st.none() | st.integers(0, 3))
    def restore(self, place: int | None) -> None:
        """Into the schema of now, or of a remembered position."""
        self.publish(snapshot=False)
        through, then = (None, self.table)
        if place is not None:
            through, then = self.past[place % len(self.past)]
        database = open_database(self.cluster)
        self.databases.append(database)
        engine = next(database)
        columns = ", ".join(f"{name} {kind}" for name, kind in then.types.items())
        comma = "," if columns else ""
        run(engine, f"CREATE TABLE {then.name} (id int PRIMARY KEY{comma} {columns})")
        target = Application(engine, self.keyring)
        target.track()
        target.restore(self.archive, through=through)
        assert_same(target.copy(), then.copy())
        target.assert_whole()

    # -- steps ----------------------------------------------------------------------------

    def choose(self, pick: int) -> str:
        names = sorted(self.table.types)
        return names[pick % len(names)]

    def forget(self, name: str) -> None:
        del self.table.types[name]
        self.table.defaults.pop(name, None)
        for row in self.table.rows.values():
            del row[name]

    def rename(self, names: dict[str, str]) -> None:
        table = self.table
        table.types = {names.get(name, name): kind for name, kind in table.types.items()}
        table.defaults = {names.get(name, name): text for name, text in table.defaults.items()}
        table.rows = {
            key: {names.get(name, name): text for name, text in row.items()}
            for key, row in table.rows.items()
        }

    def renew(self) -> None:
        """A process that starts now."""
        if self.altered:
            self.app = Application(self.engine, self.keyring)
            self.altered = False

    def type_values(self, values: dict[str, Text]) -> dict[str, Any]:
        return {
            name: text
            if text is None or "char" in kind or kind == "text"
            else float(text)
            if "numeric" in kind
            else int(text)
            for name, text in values.items()
            for kind in [self.table.types[name]]
        }

    @contextmanager
    def in_session(self) -> Iterator[tuple[Any, sa.Table, Any]]:
        (table,) = self.app.metadata.tables.values()
        model = getattr(self.app, "model", None)
        if model is None:
            model = self.app.model = type("Row", (), {})  # type: ignore[attr-defined]
            registry(metadata=self.app.metadata).map_imperatively(model, table)
        with self.app.sessions.begin() as session:
            yield session, table, model

    def read_live(self) -> Copies:
        return {
            name: one for name, one in copy_schema(self.engine, "public").items() if name in TABLES
        }


def open_database(cluster: Cluster) -> Iterator[Engine]:
    """A database with the log's tables."""
    database = FreshDatabase(cluster)
    engine = database.make_engine()
    try:
        yield engine
    finally:
        engine.dispose()
        database.drop()


@pytest.mark.sampled
def test_migrations_in_any_order(cluster: Cluster, sample: Sample) -> None:
    class Machine(Migrating):
        pass

    Machine.cluster = cluster
    if SEED is not None:
        seed(int(SEED))(Machine)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=200 if sample.whole else 8,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=SEED is None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
