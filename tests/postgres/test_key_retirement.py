"""A retired key seals no more, in no process; what it has sealed stays readable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from oplog import Keyring, Oplog, TypeCatalog
from oplog.capture.retry import is_retryable
from oplog.crypto.seal import FORMAT_SEALED
from oplog.errors import (
    ConfigurationError,
    KeyRetiredError,
    SchemaVersionError,
    TicketConflictError,
)
from oplog.schema.append_checks import KEY_RETIRED
from oplog.schema.guard import FORMAT_MARK
from oplog.schema.tables import create_statements, upgrade_statements
from oplog.store.rows import Part
from tests.concurrency.workload import waiting_for_lock
from tests.logged import run
from tests.models.bank import AGGREGATES, Account, Base
from tests.postgres.appending import FORMAT, STORE, append, make_record, sqlstate, state_append
from tests.postgres.log_schema import describe
from tests.postgres.roles import APPLICATION, AUDITOR, OWNER, STRANGER, WORKER, Roles, open_roles
from tests.support import assert_replays

pytestmark = pytest.mark.postgres


# -- the functions ------------------------------------------------------------------------------


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A log that knows the keys `old` and `new`."""
    with engine.connect() as connection:
        for key_id in ("old", "new"):
            STORE.insert_key(connection, key_id, check_value=bytes(32))
        connection.commit()
        yield connection


def retire(connection: Connection, key_id: str = "old") -> object:
    retired = connection.exec_driver_sql("SELECT oplog.oplog_retire_key(%s)", (key_id,)).scalar()
    connection.commit()
    return retired


def append_under(connection: Connection, key_id: str, name: str = "a") -> None:
    append(connection, make_record([name], format=FORMAT_SEALED, key_id=key_id))
    connection.commit()


def refuse_append(connection: Connection, key_id: str) -> tuple[str | None, str, str]:
    """SQLSTATE, message and hint."""
    with pytest.raises(DBAPIError) as refused:
        append_under(connection, key_id)
    connection.rollback()
    diagnostic = refused.value.orig.diag  # type: ignore[union-attr]
    return sqlstate(refused), diagnostic.message_primary, diagnostic.message_hint


def test_a_retired_key_seals_no_more(connection: Connection) -> None:
    append_under(connection, "old")
    retire(connection)
    state, message, hint = refuse_append(connection, "old")
    assert (state, message) == (
        "OP010",
        "oplog: the key 'old' was retired, and seals no more",
    )
    assert "newer current key" in hint
    append_under(connection, "new")
    assert state == KEY_RETIRED


def test_only_sealed_records_have_a_key_to_look_at(connection: Connection) -> None:
    retire(connection)
    append(connection, make_record(["a"], format=FORMAT, key_id=""))
    request = make_record(["oplog/request/a"], format=FORMAT_MARK, parts=[Part(0, b"")])
    append(connection, request)
    connection.commit()


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_key_that_is_not_registered_seals_nothing(engine: Engine, isolation: str) -> None:
    with engine.connect().execution_options(isolation_level=isolation) as connection:
        state, message, hint = refuse_append(connection, "elsewhere")
        assert (state, message) == ("22023", "oplog: the log does not know the key 'elsewhere'")
        assert "oplog_key" in hint
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql(state_append(p_format="1::smallint", p_key_id="NULL"))
        assert sqlstate(refused) == "22023"
        connection.rollback()
        # What the function tried in order to find out is gone.
        assert STORE.list_keys(connection) == {}


def test_retiring_again_changes_nothing(connection: Connection) -> None:
    first = retire(connection)
    assert first is not None
    assert retire(connection) == first


@pytest.mark.parametrize(
    ("key_id", "state", "why"),
    [("elsewhere", "22023", "does not know the key"), ("new", "55000", "the last that may seal")],
)
def test_what_is_not_retired(connection: Connection, key_id: str, state: str, why: str) -> None:
    retire(connection)
    with pytest.raises(DBAPIError, match=why) as refused:
        retire(connection, key_id)
    assert sqlstate(refused) == state
    connection.rollback()
    append_under(connection, "new")


def test_a_key_is_not_retired_by_an_old_snapshot(engine: Engine, connection: Connection) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as other:
        with pytest.raises(DBAPIError, match="READ COMMITTED") as refused:
            retire(other)
        assert sqlstate(refused) == "25000"


def test_of_two_retirements_at_once_one_key_is_left(engine: Engine, connection: Connection) -> None:
    ended: list[str | None] = []

    def retire_other() -> None:
        with engine.connect() as other:
            try:
                retire(other, "new")
                ended.append(None)
            except DBAPIError as refused:
                ended.append(sqlstate(refused))

    connection.exec_driver_sql("SELECT oplog.oplog_retire_key('old')")
    thread = threading.Thread(target=retire_other)
    with waiting_for_lock(engine):
        thread.start()
    # Nobody who writes waits for them, nor one who registers a key.
    with engine.connect() as writer:
        STORE.insert_key(writer, "third", check_value=bytes(32))
        append_under(writer, "new")
        writer.rollback()
        writer.exec_driver_sql("SELECT count(*) FROM oplog.oplog_key")
    connection.commit()
    thread.join()
    # The third one may seal by then.
    assert ended == [None]
    with pytest.raises(DBAPIError, match="the last that may seal"):
        retire(connection, "third")


# -- races --------------------------------------------------------------------------------------


def test_who_has_appended_may_still_commit(engine: Engine, connection: Connection) -> None:
    with engine.connect() as writer:
        append(writer, make_record(["a"], format=FORMAT_SEALED, key_id="old"))
        retire(connection)
        # Its second append begins later.
        with pytest.raises(DBAPIError) as refused, writer.begin_nested():
            append(writer, make_record(["b"], format=FORMAT_SEALED, key_id="old"))
        assert sqlstate(refused) == KEY_RETIRED
        writer.commit()
    assert connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_record").scalar() == 1


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_old_snapshot_is_no_way_round(
    engine: Engine, connection: Connection, isolation: str
) -> None:
    """It shows the key as one that seals: the append asks for the row as it is now."""
    with engine.connect().execution_options(isolation_level=isolation) as writer:
        writer.exec_driver_sql("SELECT count(*) FROM oplog.oplog_key")
        retire(connection)
        with pytest.raises(DBAPIError) as refused:
            append_under(writer, "old")
        assert sqlstate(refused) == "40001"
        writer.rollback()
        with pytest.raises(DBAPIError) as refused:
            append_under(writer, "old")
        assert sqlstate(refused) == KEY_RETIRED


def test_a_retirement_waits_for_who_appended_under_a_snapshot(
    engine: Engine, connection: Connection
) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as writer:
        append(writer, make_record(["a"], format=FORMAT_SEALED, key_id="old"))
        thread = threading.Thread(target=retire, args=(connection,))
        with waiting_for_lock(engine):
            thread.start()
        # Who seals with another key does not wait, nor who sees what is committed.
        with engine.connect() as other:
            append_under(other, "new", "b")
            append_under(other, "old", "c")
        writer.commit()
        thread.join()
    with engine.connect() as other:
        assert refuse_append(other, "old")[0] == KEY_RETIRED


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_key_that_is_newer_than_the_snapshot_seals(
    engine: Engine, connection: Connection, isolation: str
) -> None:
    """A process registers its key on another connection than the one that appends."""
    with engine.connect().execution_options(isolation_level=isolation) as writer:
        writer.exec_driver_sql("SELECT count(*) FROM oplog.oplog_key")
        STORE.insert_key(connection, "newest", check_value=bytes(32))
        connection.commit()
        append_under(writer, "newest")
    assert STORE.list_keys(connection)["newest"] == bytes(32)


# -- rights and upgrades ------------------------------------------------------------------------


@pytest.fixture
def roles(bare_database_url: sa.URL) -> Iterator[Roles]:
    with open_roles(bare_database_url, create_statements()) as roles:
        with roles.open_sessions().begin() as session:
            session.add(Account(id=1, owner="ada", balance=1))
        roles.run(OWNER, "INSERT INTO oplog.oplog_key VALUES ('spare', sha256(''))")
        yield roles


@pytest.mark.parametrize("role", [APPLICATION, WORKER, AUDITOR, STRANGER])
def test_only_the_owner_retires(roles: Roles, role: str) -> None:
    used = roles.keyring.current_key_id
    for statement in (
        f"SELECT oplog.oplog_retire_key('{used}')",
        "UPDATE oplog.oplog_key SET retired_at = now()",
        "INSERT INTO oplog.oplog_key (key_id, check_value, retired_at) VALUES ('x', '', now())",
        "INSERT INTO oplog.oplog_key (key_id, check_value, created_at) VALUES ('x', '', now())",
    ):
        assert roles.refuse(role, statement)[0] == "42501"
    roles.run(OWNER, f"SELECT oplog.oplog_retire_key('{used}')")
    with pytest.raises(KeyRetiredError), roles.open_sessions().begin() as session:
        session.add(Account(id=2, owner="ada", balance=1))


RETIRED_ONCE = (
    "\n    OR OLD.retired_at IS NOT NULL AND NEW.retired_at IS DISTINCT FROM OLD.retired_at"
)


def define_before() -> list[str]:
    """The definition of a log before keys could be retired."""
    statements = []
    for statement in create_statements():
        if "ADD COLUMN IF NOT EXISTS retired_at" in statement:
            continue
        if "oplog_retire_key" in statement and not statement.startswith("DO "):
            continue
        text = statement.replace(RETIRED_ONCE, "")
        if text.startswith('CREATE FUNCTION "oplog".oplog_append('):
            begin = text.index(f"IF p_format = {FORMAT_SEALED} THEN")
            text = text[:begin] + text[text.index(f"IF p_format = {FORMAT_MARK}") :]
        assert "retired_at" not in text
        statements.append(text)
    return statements


def test_a_log_of_the_definition_before_is_upgraded(
    bare_database_url: sa.URL, database_url: sa.URL
) -> None:
    with open_roles(bare_database_url, define_before()) as roles:
        roles.run(OWNER, f"GRANT INSERT ON oplog.oplog_key TO {roles.names[APPLICATION]}")
        sessions = roles.open_sessions()
        with sessions.begin() as session:
            session.add(Account(id=1, owner="ada", balance=1))
        roles.run(OWNER, "INSERT INTO oplog.oplog_key VALUES ('spare', sha256(''))")
        # What asks for the keys answers.
        assert {f.what for f in roles.find_problems()} >= {"log-function-missing", "table-open"}
        with roles.engine(OWNER).connect() as connection:
            log = roles.open_log()
            assert [key.retired_at for key in log.list_keys(connection).keys] == [None, None]
            with pytest.raises(SchemaVersionError, match="before keys could be") as refused:
                log.retire_key(connection, "spare")
            assert "op.upgrade_oplog(version=1)" in refused.value.hint
        for _ in range(2):
            roles.run(OWNER, *upgrade_statements())
            assert describe(roles.url) == describe(database_url)
            assert roles.find_problems() == []
        with sessions.begin() as session:
            session.get_one(Account, 1).note = "after"
        roles.run(OWNER, f"SELECT oplog.oplog_retire_key('{roles.keyring.current_key_id}')")
        with pytest.raises(KeyRetiredError), sessions.begin() as session:
            session.get_one(Account, 1).note = "too late"
        assert roles.verifies()


# -- processes ----------------------------------------------------------------------------------


class Process:
    """One process of the application, with a keyring of its own."""

    def __init__(self, engine: Engine, keyring: Keyring) -> None:
        self.engine = engine
        self.keyring = keyring
        self.log = Oplog(TypeCatalog.from_models(Base, aggregates=AGGREGATES), keyring=keyring)
        self.sessions = sessionmaker(engine)
        self.log.attach(self.sessions)

    def write(self, number: int) -> None:
        with self.sessions.begin() as session:
            session.add(Account(id=number, owner="ada", balance=number))

    def retire(self, key_id: str) -> None:
        with self.engine.begin() as connection:
            self.log.retire_key(connection, key_id)

    def list_used(self) -> list[str]:
        """Key ids of the records, in their order."""
        with self.engine.connect() as connection:
            return list(
                connection.exec_driver_sql(
                    "SELECT key_id FROM oplog.oplog_record ORDER BY position"
                ).scalars()
            )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    return path


@pytest.fixture
def old(engine: Engine, path: Path) -> Process:
    """A process that has written."""
    Base.metadata.create_all(engine)
    process = Process(engine, Keyring.from_file(path))
    process.write(1)
    return process


def rotate(engine: Engine, path: Path) -> Process:
    """Another process, which rotates the file and has written with its new key."""
    keyring = Keyring.from_file(path)
    keyring.rotate()
    process = Process(engine, keyring)
    process.write(100)
    return process


def test_a_process_that_was_running_goes_on_with_the_new_key(
    engine: Engine, old: Process, path: Path
) -> None:
    new = rotate(engine, path)
    before, after = old.keyring.current_key_id, new.keyring.current_key_id
    # A rotation alone says nothing to a process that runs.
    old.write(2)
    new.retire(before)
    with pytest.raises(KeyRetiredError) as refused:
        old.write(3)
    assert is_retryable(refused.value)
    assert refused.value.exit_code == 12
    assert before in str(refused.value)
    assert f"run the whole transaction again: it is sealed with '{after}'" in refused.value.hint
    old.write(3)
    assert old.list_used() == [before, after, before, after]
    assert old.keyring.key_ids == (before, after)
    assert_replays(old.log, engine)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_run_does_not_notice(engine: Engine, old: Process, path: Path, isolation: str) -> None:
    new = rotate(engine, path)
    before = old.keyring.current_key_id
    attempts: list[int] = []

    def work(session: Session) -> None:
        session.connection(execution_options={"isolation_level": isolation})
        session.add(Account(id=2, owner="bo", balance=2))
        session.flush()
        if not attempts:
            new.retire(before)
        attempts.append(1)

    old.log.run(old.sessions, work)
    # A snapshot is older than the retirement once.
    assert len(attempts) == (2 if isolation == "READ COMMITTED" else 3)
    assert old.list_used()[-1] == new.keyring.current_key_id


def test_a_stale_snapshot_is_a_conflict(engine: Engine, old: Process, path: Path) -> None:
    new = rotate(engine, path)
    sessions = sessionmaker(engine.execution_options(isolation_level="REPEATABLE READ"))
    old.log.attach(sessions)
    refused = pytest.raises(TicketConflictError, match="there first")
    with refused as caught, sessions.begin() as session:
        session.add(Account(id=2, owner="bo", balance=2))
        session.flush()
        new.retire(old.keyring.current_key_id)
    assert caught.value.retryable


def test_where_the_file_has_no_newer_key_it_is_said_where_to_put_one(
    engine: Engine, old: Process, path: Path
) -> None:
    before = path.read_text()
    new = rotate(engine, path)
    after = path.read_text()
    path.write_text(before)
    new.retire(old.keyring.current_key_id)
    for _ in range(2):
        with pytest.raises(KeyRetiredError) as refused:
            old.write(2)
        assert f"put a keyring with a newer current key at {path}" in refused.value.hint
    path.write_text(after[:-9])
    with pytest.raises(KeyRetiredError, match=r"\(now: the keyring in file .* is malformed"):
        old.write(2)
    path.write_text(after)
    # The first attempt has the key that it knows, and reads the file.
    with pytest.raises(KeyRetiredError, match="run the whole transaction again: it is sealed with"):
        old.write(2)
    old.write(2)
    assert old.list_used()[-1] == new.keyring.current_key_id


def test_a_keyring_that_is_not_read_again_says_so(
    engine: Engine, old: Process, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPLOG_KEYRING", old.keyring.to_text())
    from_variable = Process(engine, Keyring.from_env())
    from_variable.write(2)
    rotate(engine, path).retire(old.keyring.current_key_id)
    with pytest.raises(KeyRetiredError, match="start this process again") as refused:
        from_variable.write(3)
    assert "environment variable OPLOG_KEYRING" in refused.value.hint
    from_variable.keyring.rotate()
    from_variable.write(3)


def test_an_adoption_under_a_retired_key_is_continued(
    engine: Engine, old: Process, path: Path
) -> None:
    run(
        engine,
        "INSERT INTO account (id, owner, balance) SELECT n, 'x', n FROM "
        "generate_series(201, 210) n",
    )
    new = rotate(engine, path)
    retired: list[int] = []

    def retire_after_the_first(rows: int, _expected: int) -> None:
        if not retired:
            new.retire(before)
        retired.append(rows)

    before = old.keyring.current_key_id
    with engine.connect() as connection:
        with pytest.raises(KeyRetiredError, match="while rows were logged") as refused:
            old.log.adopt(connection, [Account], chunk_rows=4, progress=retire_after_the_first)
        assert refused.value.hint.startswith("adopt again, which continues")
        connection.rollback()
        report = old.log.adopt(connection, [Account], chunk_rows=4)
    assert report.types[0].earlier_rows == 4
    assert old.list_used()[-2:] == [new.keyring.current_key_id] * 2
    with engine.connect() as connection:
        assert old.log.verify(connection).ok


# -- what an operator sees ----------------------------------------------------------------------


def test_keys_are_listed_by_age(engine: Engine, old: Process, path: Path) -> None:
    new = rotate(engine, path)
    before, after = old.keyring.current_key_id, new.keyring.current_key_id
    run(
        engine,
        "ALTER TABLE oplog.oplog_key DISABLE TRIGGER oplog_append_only_rewrap",
        "UPDATE oplog.oplog_key SET created_at = created_at - interval '400 days' "
        f"WHERE key_id = '{before}'",
        "ALTER TABLE oplog.oplog_key ENABLE ALWAYS TRIGGER oplog_append_only_rewrap",
    )
    with engine.connect() as connection:
        listed = [(k.key_id, k.state, k.age_days) for k in new.log.list_keys(connection).keys]
        found = {f.what: f for f in new.log.diagnose(connection) if f.what.startswith("key-")}
    assert listed == [(before, "held", 400), (after, "current", 0)]
    assert list(found) == ["key-superseded"]
    assert found["key-superseded"].severity == "notice"
    assert "400 days" in found["key-superseded"].message
    assert f"oplog keys retire {before}" in found["key-superseded"].hint
    new.retire(before)
    with engine.connect() as connection:
        first, second = new.log.list_keys(connection).keys
        assert (first.retired_at is None, second.retired_at) == (False, None)
        assert [f for f in new.log.diagnose(connection) if f.what.startswith("key-")] == []
        (refused,) = (f for f in old.log.diagnose(connection) if f.what.startswith("key-"))
        assert (refused.severity, refused.what) == ("problem", "key-retired")


@pytest.mark.parametrize(("days", "told"), [(30, []), (10, ["key-old"])])
def test_the_newest_key_is_told_when_it_is_old(
    engine: Engine, old: Process, days: int, told: list[str]
) -> None:
    run(
        engine,
        "ALTER TABLE oplog.oplog_key DISABLE TRIGGER oplog_append_only_rewrap",
        "UPDATE oplog.oplog_key SET created_at = created_at - interval '20 days'",
        "ALTER TABLE oplog.oplog_key ENABLE ALWAYS TRIGGER oplog_append_only_rewrap",
    )
    with engine.connect() as connection:
        found = old.log.diagnose(connection, key_days=days)
    assert [f.what for f in found if f.what.startswith("key-")] == told


def test_what_would_stop_this_application_is_not_retired(
    engine: Engine, old: Process, path: Path
) -> None:
    new = rotate(engine, path)
    with pytest.raises(ConfigurationError, match="current one of this application's keyring"):
        new.retire(new.keyring.current_key_id)
    with pytest.raises(ConfigurationError, match="does not know the key 'elsewhere'"):
        new.retire("elsewhere")
    new.retire(old.keyring.current_key_id)
    # As somebody sees it whose keyring is the old one.
    with pytest.raises(ConfigurationError, match="the last that may seal") as refused:
        old.retire(new.keyring.current_key_id)
    assert "oplog types sync" in refused.value.hint
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        with pytest.raises(ConfigurationError, match="READ COMMITTED") as refused:
            new.log.retire_key(connection, "x")
        assert "isolation_level='READ COMMITTED'" in refused.value.hint
