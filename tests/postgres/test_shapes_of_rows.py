"""Rows shown with the columns of now, of then, or of a revision that a reader knows."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.engine import Engine

from oplog import TypeCatalog
from oplog.errors import ConfigurationError, UpcastError
from oplog.facade import Oplog
from tests.logged import track
from tests.postgres.migrated import App, make_app

pytestmark = pytest.mark.postgres


@pytest.fixture
def app(engine: Engine) -> App:
    """Two releases: a column renamed, one added, one dropped, and the table renamed."""
    first = make_app(engine, "CREATE TABLE thing (id integer PRIMARY KEY, a integer, b text)")
    first.write("INSERT INTO thing (id, a, b) VALUES (1, 11, 'one')")
    first.write("UPDATE thing SET a = 12, b = 'two' WHERE id = 1")
    second = first.migrate(
        "ALTER TABLE thing RENAME a TO z",
        "ALTER TABLE thing DROP COLUMN b",
        "ALTER TABLE thing ADD COLUMN c integer NOT NULL DEFAULT 7",
        "ALTER TABLE thing RENAME TO item",
        "ALTER TABLE item RENAME id TO uid",
    )
    second.note()
    second.write("UPDATE item SET z = 13, c = 8 WHERE uid = 1")
    return second


def list_positions(app: App) -> list[int]:
    with app.engine.connect() as connection:
        return [entry.position for entry in app.log.read(connection) if entry.operations]


def test_history_with_the_columns_of_now_and_of_then(app: App) -> None:
    item = app.metadata.tables["item"]
    with app.engine.connect() as connection:
        now = [change.fields for change in app.log.history(connection, item, 1)]
        then = [change.fields for change in app.log.history(connection, item, 1, shape="then")]
        first = [
            change.fields for change in app.log.history(connection, item, 1, revisions={"item": 1})
        ]
    assert now == [{"uid": 1, "z": 11, "c": 7}, {"z": 12}, {"z": 13, "c": 8}]
    assert then == [{"id": 1, "a": 11, "b": "one"}, {"a": 12, "b": "two"}, {"z": 13, "c": 8}]
    assert first == [{"id": 1, "a": 11, "b": "one"}, {"a": 12, "b": "two"}, {"a": 13}]


def test_as_of_with_the_columns_of_now_and_of_then(app: App) -> None:
    item, positions = app.metadata.tables["item"], list_positions(app)
    with app.engine.connect() as connection:

        def look(at: int, **options: Any) -> object:
            return app.log.as_of(connection, item, key=1, at=at, **options)

        assert look(positions[0]) == {"uid": 1, "z": 11, "c": 7}
        assert look(positions[1], shape="then") == {"id": 1, "a": 12, "b": "two"}
        assert look(positions[1]) == {"uid": 1, "z": 12, "c": 7}
        assert look(positions[2]) == {"uid": 1, "z": 13, "c": 8}
        # Rows of before have what the column got when it was added.
        assert look(positions[2], shape="then") == {"uid": 1, "z": 13, "c": 8}
        assert look(positions[2], revisions={"thing": 1}) == {"id": 1, "a": 13, "b": "two"}
        assert look(positions[0] - 1) is None
        with pytest.raises(ConfigurationError, match="neither 'now' nor 'then'"):
            look(1, shape="never")


def test_a_reader_asks_for_the_revision_that_it_knows(app: App) -> None:
    with app.engine.connect() as connection:

        def read(**options: Any) -> list[object]:
            found = app.log.read(connection, **options)
            return [one.fields for entry in found for one in entry.operations]

        old = [{"id": 1, "a": 11, "b": "one"}, {"a": 12, "b": "two"}]
        assert read() == [*old, {"z": 13, "c": 8}]
        assert read(revisions={"thing": 1}) == [*old, {"a": 13}]
        new = [{"uid": 1, "z": 11, "c": 7}, {"z": 12}, {"z": 13, "c": 8}]
        assert read(revisions={"thing": 2}) == read(revisions={"item": 2}) == new
        with pytest.raises(UpcastError, match="the log has no revision 9 of it"):
            read(revisions={"thing": 9})
    batches = app.log.subscribe(app.engine, name="old", revisions={"thing": 1})
    found = []
    for batch in batches:
        found += [one.fields for entry in batch for one in entry.operations]
        batch.commit()
    assert found == [*old, {"a": 13}]


def test_declared_steps_go_first(app: App) -> None:
    catalog = TypeCatalog.from_models(app.metadata)

    def split(row: dict[str, Any]) -> dict[str, Any]:
        found = {"uid": row["id"]} if "id" in row else {}
        return found | {"z": row["a"] * 100, "c": len(row["b"])}

    catalog.upcast("item", from_revision=1, step=split)
    log = Oplog(catalog, keyring=app.keyring)
    with app.engine.connect() as connection:
        changes = log.history(connection, app.metadata.tables["item"], 1)
        report = log.check_steps(connection)
    assert [one.fields for one in changes] == [
        {"uid": 1, "z": 1100, "c": 3},
        {"z": 1200, "c": 3},
        {"z": 13, "c": 8},
    ]
    assert (report.ok, report.effects, report.converted) == (True, 3, 2)
    with app.engine.begin() as connection:
        log.replay(connection, into="again")
        row = connection.exec_driver_sql("SELECT uid, z, c FROM again.item").one()
    assert tuple(row) == (1, 13, 8)


def test_steps_are_tried_on_every_effect_without_stopping(app: App) -> None:
    catalog = TypeCatalog.from_models(app.metadata)

    def fail(row: dict[str, Any]) -> dict[str, Any]:
        return {"uid": row["id"], "z": row["a"]}

    catalog.upcast("item", from_revision=1, step=fail)
    catalog.downcast("item", to_revision=1, step=lambda row: {"nothing": row["z"]})
    log = Oplog(catalog, keyring=app.keyring)
    with app.engine.connect() as connection:
        report = log.check_steps(connection)
    positions = list_positions(app)
    assert (report.ok, report.effects, report.converted, report.count) == (False, 3, 1, 2)
    found = [(one.position, one.type_name, one.revision, one.towards) for one in report.failures]
    assert found == [(positions[1], "thing", 1, 2), (positions[2], "thing", 2, 1)]
    assert "'id'" in report.failures[0].error
    assert "returned column 'nothing'" in report.failures[1].error
    assert report.to_json()["failures"][0]["position"] == positions[1]


def test_rows_under_a_replaced_key_end_where_all_were_logged_anew(engine: Engine) -> None:
    first = make_app(engine, "CREATE TABLE thing (id integer PRIMARY KEY, n integer NOT NULL)")
    first.write("INSERT INTO thing (id, n) VALUES (1, 5)")
    then, before = first.position(), first.dump()
    second = first.migrate(
        "ALTER TABLE thing DROP CONSTRAINT thing_pkey", "ALTER TABLE thing ADD PRIMARY KEY (n)"
    )
    track(second.engine, *second.metadata.tables.values())
    with second.engine.begin() as connection:
        second.log.replace_type(connection, "thing", reason="n is the better key")
    second.write("UPDATE thing SET id = 2 WHERE n = 5")
    assert second.verify().ok
    assert second.replay() == second.dump()
    assert second.replay(through=then) == before
    with second.engine.connect() as connection:
        thing = second.metadata.tables["thing"]
        changes = second.log.history(connection, thing, 5)
        assert [one.fields for one in changes] == [{"id": 1, "n": 5}, {"id": 2}]
        with pytest.raises(UpcastError, match="another key"):
            list(second.log.read(connection, revisions={"thing": 2}))
