"""Undo of values of every type, and across what migrations made of tables."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog.errors import UndoError
from oplog.postgres.quoting import quote, quote_literal
from tests.logged import open_logged
from tests.postgres.migrated import App, make_app
from tests.property.type_samples import TYPES, Sample
from tests.property.type_samples_made import SAMPLES
from tests.property.type_tables import APPLICATION_SETTINGS, AWKWARD, Spelled
from tests.support import assert_replays

pytestmark = pytest.mark.postgres


def take(app: App) -> dict[str, list[Any]]:
    with app.engine.connect() as connection:
        return {
            table.name: list(connection.execute(sa.select(table).order_by(*table.primary_key)))
            for table in app.metadata.sorted_tables
            if table.schema is None
        }


def write(app: App, *statements: str) -> int:
    app.write(*statements)
    return app.position()


def undo(app: App, *records: int, **options: Any) -> int:
    plan = app.log.plan_undo(app.engine, records=records, **options)
    assert app.log.undo(app.sessions, plan)
    assert app.verify().ok
    return app.position()


def test_values_of_every_type_come_back_as_they_were(engine: Engine) -> None:
    metadata = sa.MetaData()
    samples: dict[str, Sample] = {}
    for number, sample in enumerate(s for s in SAMPLES if s.nullable and not s.needs):
        samples[f"t{number}"] = sample
        sa.Table(
            f"t{number}",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column(AWKWARD, Spelled(sample.sql)),
        )
    with engine.begin() as connection:
        for statement in TYPES:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    db = open_logged(engine, metadata, guarded=True)

    @sa.event.listens_for(db.engine, "connect")
    def misprint(raw: Any, _record: Any) -> None:
        for name, value in APPLICATION_SETTINGS.items():
            raw.execute(f"SET {name} = {quote_literal(value)}")
        raw.commit()

    db.engine.dispose()

    def state() -> dict[str, list[Any]]:
        with db.engine.connect() as connection:
            connection.exec_driver_sql("SET LOCAL extra_float_digits = 3")
            return {
                name: [
                    tuple(row)
                    for row in connection.exec_driver_sql(
                        f"SELECT id, {quote(AWKWARD)}::text FROM {name} ORDER BY id",
                        execution_options={"no_parameters": True},
                    )
                ]
                for name in samples
            }

    def execute(*statements: str) -> int:
        with db.sessions.begin() as session:
            for statement in statements:
                session.connection().exec_driver_sql(
                    statement, execution_options={"no_parameters": True}
                )
        return db.read()[-1].position

    fixed = "SET LOCAL datestyle = 'ISO, MDY'; SET LOCAL intervalstyle = 'postgres'"
    empty = state()
    made = execute(
        fixed,
        *(
            f"INSERT INTO {name} VALUES ({number}, {quote_literal_safely(value)})"
            for name, sample in samples.items()
            for number, value in enumerate(sample.always)
        ),
    )
    first = state()
    turned = execute(
        *(
            f"UPDATE {name} a SET {quote(AWKWARD)} = b.v FROM (SELECT id, "
            f"lag({quote(AWKWARD)}) OVER (ORDER BY id DESC) AS v FROM {name}) b "
            f"WHERE a.id = b.id AND b.id < {len(sample.always) - 1}"
            for name, sample in samples.items()
        )
    )
    second = state()
    assert first != second
    gone = execute(*(f"DELETE FROM {name}" for name in samples))
    for record, expected in ((gone, second), (turned, first), (made, empty)):
        plan = db.log.plan_undo(db.engine, records=record)
        assert not plan.conflicts, plan.preview()
        db.log.undo(db.sessions, plan)
        assert state() == expected
    assert_replays(db.log, db.engine)


def quote_literal_safely(text: str) -> str:
    return "E" + quote_literal(text.replace("\\", "\\\\"))


FIRST = (
    "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "CREATE TABLE thing (id integer PRIMARY KEY, a integer, b text, m mood)",
    "CREATE TABLE other (id integer PRIMARY KEY, thing integer REFERENCES thing, note text)",
    "CREATE TABLE gone (id integer PRIMARY KEY)",
)


def test_into_the_shape_of_now(engine: Engine) -> None:
    app = make_app(engine, *FIRST)
    write(app, "INSERT INTO thing VALUES (1, 11, 'one', 'good'), (2, 12, 'two', 'bad')")
    changed = write(app, "UPDATE thing SET a = 21, b = 'changed', m = 'bad' WHERE id = 1")
    deleted = write(app, "DELETE FROM thing WHERE id = 2")
    app = app.migrate(
        "ALTER TABLE thing RENAME a TO amount",
        "ALTER TABLE thing DROP b",
        "ALTER TABLE thing ADD c text DEFAULT 'new'",
        "ALTER TYPE mood RENAME VALUE 'good' TO 'fine'",
        "ALTER TABLE thing RENAME TO article",
    )
    app.note()
    undo(app, changed)
    undo(app, deleted)
    assert [tuple(row) for row in take(app)["article"]] == [
        (1, 11, "fine", "new"),
        (2, 12, "bad", "new"),
    ]


def test_column_that_was_converted(engine: Engine) -> None:
    app = make_app(engine, *FIRST)
    write(app, "INSERT INTO thing VALUES (1, 11, 'one', 'good'), (2, 12, 'two', 'bad')")
    only = write(app, "UPDATE thing SET a = 21 WHERE id = 1")
    changed = write(app, "UPDATE thing SET a = 22, b = 'changed' WHERE id = 1")
    deleted = write(app, "DELETE FROM thing WHERE id = 2")
    app = app.migrate("ALTER TABLE thing ALTER a TYPE text USING a || ' pieces'")
    app.note()
    for record in (only, changed, deleted):
        (conflict,) = app.log.plan_undo(app.engine, records=record).conflicts
        assert (conflict.kind, conflict.column) == ("unknown", "a")
    undo(app, changed, on_conflict="skip")
    assert [tuple(row) for row in take(app)["thing"]] == [(1, "22 pieces", "one", "good")]


def test_table_that_was_dropped(engine: Engine) -> None:
    app = make_app(engine, *FIRST)
    lost = write(app, "INSERT INTO gone VALUES (1)", "INSERT INTO thing VALUES (1)")
    app = app.migrate("DROP TABLE gone")
    app.note()
    with pytest.raises(UndoError, match="changed 'gone'"):
        app.log.plan_undo(app.engine, records=lost)
    plan = app.log.plan_undo(app.engine, records=lost, aggregate="thing/1")
    assert [write.describe() for write in plan.writes] == ["delete public.thing (id=1)"]


def test_rows_that_move_between_partitions(engine: Engine) -> None:
    sale = sa.Table(
        "sale",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("region", sa.Text, primary_key=True),
        sa.Column("amount", sa.Integer),
        postgresql_partition_by="LIST (region)",
    )
    db = open_logged(
        engine,
        sale.metadata,
        guarded=True,
        objects=[f"CREATE TABLE sale_{r} PARTITION OF sale FOR VALUES IN ('{r}')" for r in "ns"],
    )

    def write(statement: str) -> int:
        with db.sessions.begin() as session:
            session.execute(sa.text(statement))
        return db.read()[-1].position

    def take() -> list[Any]:
        with db.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.select(sale).order_by(sale.c.id))]

    write("INSERT INTO sale VALUES (1, 'n', 1), (2, 's', 2)")
    before = take()
    moved = write("UPDATE sale SET region = 's', amount = 5 WHERE id = 1")
    after = take()
    for expected in (before, after):
        db.log.undo(db.sessions, db.log.plan_undo(db.engine, records=moved))
        assert take() == expected
        moved = db.read()[-1].position
    assert_replays(db.log, db.engine)


def test_rows_of_before_the_log(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE old (id integer PRIMARY KEY, a text, b text)")
        connection.exec_driver_sql("INSERT INTO old VALUES (1, 'a', 'b'), (2, 'a', 'b')")
    app = make_app(engine)
    changed = write(app, "UPDATE old SET a = 'x' WHERE id = 1")
    deleted = write(app, "DELETE FROM old WHERE id = 2")
    (conflict,) = app.log.plan_undo(app.engine, records=changed).conflicts
    assert (conflict.kind, conflict.column) == ("unknown", "a")
    kinds = {one.kind for one in app.log.plan_undo(app.engine, records=deleted).conflicts}
    assert kinds == {"unknown"}
    with app.engine.connect() as connection:
        app.log.adopt(connection)
    adopted = app.position()
    with pytest.raises(UndoError, match="logs rows as they were"):
        app.log.plan_undo(app.engine, records=adopted)
    plan = app.log.plan_undo(app.engine, after=deleted)
    assert (len(plan.writes), plan.left_out[0][0]) == (0, adopted)
    before = take(app)
    undo(app, write(app, "UPDATE old SET a = 'y', b = NULL WHERE id = 1"))
    assert take(app) == before
