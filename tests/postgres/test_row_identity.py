"""Which row a key means after its table, or the table's key, became another one."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.engine import Engine

from oplog.errors import ConfigurationError
from tests.logged import track
from tests.postgres.migrated import App, make_app

pytestmark = pytest.mark.postgres

BEFORE = (
    "CREATE TABLE thing (id integer PRIMARY KEY, a integer)",
    "CREATE TABLE other (id integer PRIMARY KEY, a integer)",
)


@pytest.fixture
def app(engine: Engine) -> App:
    app = make_app(engine, *BEFORE)
    app.write("INSERT INTO thing VALUES (1, 11), (2, 12)")
    app.write("INSERT INTO other VALUES (1, 101)")
    return app


def migrate(app: App, *ddl: str) -> App:
    migrated = app.migrate(*ddl)
    track(migrated.engine, *migrated.metadata.tables.values())
    migrated.note()
    return migrated


def tell(app: App, key: Any, at: int, **options: Any) -> dict[str, Any] | None:
    with app.engine.connect() as connection:
        return app.log.as_of(connection, app.metadata.tables["thing"], key=key, at=at, **options)


def list_fields(app: App, key: Any) -> list[dict[str, Any]]:
    with app.engine.connect() as connection:
        changes = app.log.history(connection, app.metadata.tables["thing"], key)
        return [dict(change.fields) for change in changes]


def test_a_table_that_has_the_name_of_a_dropped_one_has_its_own_rows(app: App) -> None:
    before = app.position()
    migrated = migrate(app, "DROP TABLE thing", "ALTER TABLE other RENAME TO thing")
    assert tell(migrated, 1, before) == {"id": 1, "a": 101}
    assert tell(migrated, 2, before) is None
    assert list_fields(migrated, 1) == [{"id": 1, "a": 101}]
    assert list_fields(migrated, 2) == []


def test_rows_of_a_dropped_table_are_gone_from_there_on(app: App) -> None:
    before = app.position()
    migrated = migrate(app, "DROP TABLE thing")
    after = migrated.position()
    for shape in ("now", "then"):
        assert tell(app, 1, before, shape=shape) == {"id": 1, "a": 11}
        assert tell(app, 1, after, shape=shape) is None


def test_rows_that_were_logged_under_another_key_are_gone_under_the_former_one(app: App) -> None:
    before = app.position()
    migrated = migrate(app, "ALTER TABLE thing ALTER id TYPE integer USING id + 100")
    after = migrated.position()
    assert tell(migrated, 1, before) == {"id": 1, "a": 11}
    assert tell(migrated, 1, after) is None
    assert tell(migrated, 101, before) is None
    assert tell(migrated, 101, after) == {"id": 101, "a": 11}


def test_a_key_of_then_finds_the_rows_of_then(app: App) -> None:
    before = app.position()
    migrated = migrate(app, "ALTER TABLE thing ALTER id TYPE text USING 'n' || id")
    after = migrated.position()
    assert tell(migrated, 2, before, shape="then") == {"id": 2, "a": 12}
    assert tell(migrated, 2, after) is None
    assert tell(migrated, "n2", after) == {"id": "n2", "a": 12}
    assert tell(migrated, "n2", before) is None
    assert list_fields(migrated, 2) == [{"id": 2, "a": 12}]
    with pytest.raises(ConfigurationError, match=r"id \(text\)"):
        tell(migrated, 2.5, before)


def test_a_key_with_more_columns_is_not_one_with_fewer(app: App) -> None:
    migrated = app.migrate(
        "ALTER TABLE thing ADD k integer NOT NULL DEFAULT 0, DROP CONSTRAINT thing_pkey",
        "ALTER TABLE thing ADD PRIMARY KEY (id, k)",
    )
    with migrated.engine.connect() as connection:
        migrated.log.replace_type(connection, "thing", reason="the test says so")
    wide = migrated.position()
    narrow = migrated.migrate("ALTER TABLE thing DROP CONSTRAINT thing_pkey, ADD PRIMARY KEY (id)")
    with narrow.engine.connect() as connection:
        narrow.log.replace_type(connection, "thing", reason="the test says so")
    now = narrow.position()
    assert tell(narrow, 1, now) == {"id": 1, "a": 11, "k": 0}
    assert tell(migrated, (1, 0), wide) == {"id": 1, "a": 11, "k": 0}
    assert tell(migrated, (1, 0), now) is None
    assert tell(migrated, (1, 7), now) is None
