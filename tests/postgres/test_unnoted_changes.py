"""DDL by hand that nobody noted: a process that is bound notices before its COMMIT."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.errors import SchemaChangedError, SchemaDriftError
from tests.evolved import Spelled
from tests.logged import run, track

pytestmark = pytest.mark.postgres

TYPES = (
    "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "CREATE DOMAIN humour AS mood",
    "CREATE TYPE place AS (street text, number integer)",
)
COLUMNS = {
    "name": "text",
    "nick": "text",
    "amount": "numeric(8, 4)",
    "moods": "mood[]",
    "mood": "humour",
    "home": "place",
    "other": "integer",
}
CHANGES = {
    "a column is renamed": ["ALTER TABLE person RENAME name TO label"],
    "two columns swap their names": [
        "ALTER TABLE person RENAME name TO x",
        "ALTER TABLE person RENAME nick TO name",
        "ALTER TABLE person RENAME x TO nick",
    ],
    "a column is added": ["ALTER TABLE person ADD more text DEFAULT 'a'"],
    "a column goes": ["ALTER TABLE person DROP other"],
    "a type is another": ["ALTER TABLE person ALTER other TYPE bigint"],
    "a default is set": ["ALTER TABLE person ALTER name SET DEFAULT 'x'"],
    "a trigger is added": [
        """CREATE FUNCTION set_name() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN NEW.nick := 'x'; RETURN NEW; END$$""",
        "CREATE TRIGGER set_name BEFORE INSERT ON person FOR EACH ROW EXECUTE FUNCTION set_name()",
    ],
    "a scale is smaller": ["ALTER TABLE person ALTER amount TYPE numeric(8, 1)"],
    "labels swap": [
        "ALTER TYPE mood RENAME VALUE 'good' TO 'x'",
        "ALTER TYPE mood RENAME VALUE 'bad' TO 'good'",
        "ALTER TYPE mood RENAME VALUE 'x' TO 'bad'",
    ],
    "a field is renamed": ["ALTER TYPE place RENAME ATTRIBUTE street TO road"],
    "a field is added": ["ALTER TYPE place ADD ATTRIBUTE more text"],
}
TOO_OLD = {"a column is renamed", "a column goes"}
"""After these the models have a column that is not there."""
HARMLESS = (
    "ALTER TABLE person ALTER name SET STATISTICS 50",
    "CREATE INDEX ON person (name)",
    "ALTER TYPE mood ADD VALUE 'new' BEFORE 'bad'",
    "ANALYZE person",
    "VACUUM FULL person",
    "CREATE TABLE beside (id integer)",
)


class Process:
    """An application that was bound to the table as it was."""

    def __init__(self, engine: Engine, *, guarded: bool = True) -> None:
        self.engine = engine
        run(engine, *TYPES)
        metadata = sa.MetaData()
        self.table = sa.Table(
            "person",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            *(sa.Column(name, Spelled(spec)) for name, spec in COLUMNS.items()),
        )
        self.log = Oplog(TypeCatalog.from_models(metadata), keyring=Keyring.generate())
        self.sessions: sessionmaker[Session] = sessionmaker(engine)
        self.log.attach(self.sessions)
        metadata.create_all(engine)
        if guarded:
            track(engine, self.table)
        self.write(1)

    def write(self, id: int) -> None:
        with self.sessions.begin() as session:
            session.execute(sa.insert(self.table), [{"id": id}])


@pytest.fixture(params=[True, False], ids=["guarded", "no guard"])
def process(request: pytest.FixtureRequest, engine: Engine) -> Process:
    return Process(engine, guarded=request.param)


@pytest.mark.parametrize("name", CHANGES)
def test_a_write_after_it_is_refused_before_it_commits(process: Process, name: str) -> None:
    run(process.engine, *CHANGES[name])
    with pytest.raises(SchemaChangedError) as caught:
        process.write(2)
    assert caught.value.retryable
    with process.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM person")).scalar_one() == 1
    if name in TOO_OLD:
        with pytest.raises(SchemaDriftError, match="in the model and not in the database"):
            process.write(2)
    else:
        process.write(2)
    with process.engine.connect() as connection:
        assert process.log.verify(connection).ok


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_leaves_columns_as_they_were_stops_nobody(process: Process, statement: str) -> None:
    alone = process.engine.execution_options(isolation_level="AUTOCOMMIT")
    run(alone, statement)
    process.write(2)
    with process.engine.connect() as connection:
        assert process.log.verify(connection).ok


def test_another_table_stops_nobody(process: Process) -> None:
    """What is compared is what the transaction wrote."""
    run(process.engine, "CREATE TABLE beside (id integer)", "ALTER TABLE beside ADD more text")
    process.write(2)
