"""What the store reads back: pages, filters, places in time, links, keys, types, and its state."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy.engine import Connection, Engine

from oplog.crypto.aggregate_chain import ChainCheck
from oplog.errors import SchemaVersionError
from oplog.postgres.exchange import execute
from oplog.postgres.standby import ALL_VISIBLE
from oplog.schema.tables import COMMENT_PREFIX
from oplog.store import NewEntry, Store
from oplog.store.home import Identity
from oplog.store.rows import BrokenLink, EntryFilter
from tests.bound import make_shape

pytestmark = pytest.mark.postgres

STORE = Store("oplog")
SHAPE = make_shape([("id", "integer"), ("name", "text")], key=["id"])


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def append(connection: Connection, *names: str, metadata: dict[str, str] | None = None) -> None:
    """One transaction on these aggregates; an entry's data are its aggregate's name."""
    entries = [NewEntry(n, None, uuid4(), b"body" * 8, n.encode()) for n in sorted(names)]
    message = STORE.bind_append(
        entries,
        format=1,
        key_id="k",
        metadata=list((metadata or {}).items()),
        metadata_hash=b"m" * 32,
    )
    execute(connection, message)
    connection.commit()


def read(connection: Connection, filter: EntryFilter | None = None) -> list[str]:
    """Aggregates of the entries, page by page, in both ways that there are."""
    snapshot = STORE.read_snapshot(connection)
    here, there = (
        [entry for page in pages for entry in page]
        for pages in (
            STORE.iterate(connection, filter or EntryFilter(), snapshot=how)
            for how in (snapshot, ALL_VISIBLE)
        )
    )
    assert here == there
    return [entry.aggregate for entry in here]


def test_entries_come_page_by_page_in_order(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for names in ("b", "ac", "d", "e"):
        append(connection, *names)
    assert read(connection) == ["b", "a", "c", "d", "e"]
    monkeypatch.setattr("oplog.store.entries.PAGE_ENTRIES", 2)
    assert read(connection) == ["b", "a", "c", "d", "e"]
    monkeypatch.setattr("oplog.store.entries.PAGE_BYTES", 1)
    assert read(connection) == ["b", "a", "c", "d", "e"]
    snapshot = STORE.read_snapshot(connection)
    first = STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=0)
    assert len(first) == 1
    monkeypatch.setattr("oplog.store.entries.PAGE_BYTES", 2)
    page = STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=first[0].position)
    assert [entry.aggregate for entry in page] == ["a", "c"]
    assert (page[0].data, page[0].version, page[0].transaction_size) == (b"a", 1, 2)


def test_filters_hold_together(connection: Connection) -> None:
    append(connection, "a", "b", metadata={"actor": "ada", "why": "x"})
    append(connection, "a", metadata={"actor": "bob"})
    append(connection, "c", metadata={"actor": "ada", "why": "y"})
    whole = STORE.read_page(
        connection, EntryFilter(), snapshot=STORE.read_snapshot(connection), after=0
    )
    second = whole[1].position
    assert read(connection, EntryFilter(aggregate="a")) == ["a", "a"]
    assert read(connection, EntryFilter(aggregates=("c", "b"))) == ["b", "c"]
    assert read(connection, EntryFilter(aggregates=("a", "b"), aggregate="b")) == ["b"]
    assert read(connection, EntryFilter(metadata=(("actor", "ada"),))) == ["a", "b", "c"]
    assert read(connection, EntryFilter(metadata=(("actor", "ada"), ("why", "y")))) == ["c"]
    assert read(connection, EntryFilter(metadata=(("why", "ada"),))) == []
    assert read(connection, EntryFilter(through=second)) == ["a", "b"]
    assert read(connection, EntryFilter(after=second)) == ["a", "c"]
    assert read(connection, EntryFilter(after=second, aggregate="a")) == ["a"]
    assert read(connection, EntryFilter(through=second, aggregate="a")) == ["a"]
    after = STORE.read_page(
        connection,
        EntryFilter(after=second),
        snapshot=STORE.read_snapshot(connection),
        after=whole[2].position,
    )
    assert [entry.aggregate for entry in after] == ["c"]
    before = STORE.read_page(
        connection,
        EntryFilter(after=second),
        snapshot=STORE.read_snapshot(connection),
        after=whole[0].position,
    )
    assert [entry.aggregate for entry in before] == ["a", "c"]


def test_only_what_the_snapshot_shows(connection: Connection) -> None:
    append(connection, "a")
    snapshot = STORE.read_snapshot(connection)
    append(connection, "b")
    page = STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=0)
    assert [entry.aggregate for entry in page] == ["a"]
    (told,) = STORE.iterate(connection, EntryFilter(), snapshot=snapshot)
    assert told == page
    later = page[0].recorded_at + timedelta(hours=1)
    assert STORE.find_position(connection, later, snapshot=snapshot) == page[0].position


def test_a_standby_is_read_through_one_cursor(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A snapshot kept as text holds nothing together there: no page may be asked for by one.
    append(connection, "a")
    monkeypatch.delattr(Store, "read_page")
    (page,) = STORE.iterate(connection, EntryFilter(), snapshot=ALL_VISIBLE)
    assert [entry.aggregate for entry in page] == ["a"]


def test_metadata_by_transaction(connection: Connection) -> None:
    append(connection, "a", "b", metadata={"z": "1", "a": "2"})
    append(connection, "a", metadata={"k": "3"})
    append(connection, "a")
    snapshot = STORE.read_snapshot(connection)
    found = STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=0)
    first, _, second, third = (entry.transaction_position for entry in found)
    assert STORE.read_metadata(connection, [third, second, first, first]) == {
        first: [("z", "1"), ("a", "2")],
        second: [("k", "3")],
    }
    assert STORE.read_metadata(connection, []) == {}


def test_a_time_is_the_last_position_recorded_by_then(connection: Connection) -> None:
    snapshot = STORE.read_snapshot(connection)
    assert STORE.find_position(connection, datetime.now(UTC), snapshot=snapshot) == 0
    append(connection, "a")
    append(connection, "a")
    snapshot = STORE.read_snapshot(connection)
    one, two = STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=0)
    step = timedelta(microseconds=1)
    found = [
        STORE.find_position(connection, at, snapshot=snapshot)
        for at in (one.recorded_at - step, one.recorded_at, two.recorded_at - step, two.recorded_at)
    ]
    assert found == [0, one.position, one.position, two.position]


def test_tickets_that_were_never_written_are_left_out(connection: Connection) -> None:
    append(connection, "a", "b")
    append(connection, "b")
    assert STORE.read_tickets(connection, ["b", "a", "never"]) == {"a": 1, "b": 2}


def test_keys_are_kept_once(connection: Connection) -> None:
    assert STORE.read_key_check(connection, "k") is None
    STORE.insert_key(connection, "k", check_value=b"one")
    STORE.insert_key(connection, "k", check_value=b"two")
    STORE.insert_key(connection, "l", check_value=b"three")
    assert STORE.read_key_check(connection, "k") == b"one"
    assert STORE.list_keys(connection) == {"k": b"one", "l": b"three"}


def test_types_are_kept_once(connection: Connection) -> None:
    assert STORE.insert_type(connection, SHAPE) is True
    assert STORE.insert_type(connection, SHAPE) is False
    assert STORE.list_types(connection) == [SHAPE]


def test_the_log_has_one_identity(connection: Connection) -> None:
    found = connection.exec_driver_sql("SELECT log_id FROM oplog.oplog_log").scalar()
    assert STORE.read_log_id(connection) == found
    connection.exec_driver_sql("INSERT INTO oplog.oplog_log DEFAULT VALUES")
    with pytest.raises(SchemaVersionError, match="has 2 rows in oplog_log"):
        STORE.read_log_id(connection)


def test_the_version_is_in_a_comment(connection: Connection) -> None:
    assert STORE.read_version(connection) == 1
    STORE.require_current(connection)
    for comment, version in [
        ("oplog schema version 12", 12),
        ("oplog schema version", None),
        ("oplog schema version one", None),
        ("another 1", None),
        ("x" * len(COMMENT_PREFIX) + "7", None),
        ("", None),
    ]:
        connection.exec_driver_sql(f"COMMENT ON TABLE oplog.oplog_entry IS '{comment}'")
        assert STORE.read_version(connection) == version
    for version, match, hint in [
        (0, "version 0, this library needs", "op.upgrade_oplog(version=1)"),
        (2, "version 2, this library knows", "upgrade the oplog package"),
    ]:
        connection.exec_driver_sql(
            f"COMMENT ON TABLE oplog.oplog_entry IS 'oplog schema version {version}'"
        )
        with pytest.raises(SchemaVersionError, match=match) as caught:
            STORE.require_current(connection)
        assert hint in caught.value.hint
        assert caught.value.hint.endswith((")", "application"))
    for schema, line in [
        ("elsewhere", "op.create_oplog(version=1, schema='elsewhere')"),
        ("oplog", "op.create_oplog(version=1)"),
    ]:
        connection.exec_driver_sql("COMMENT ON TABLE oplog.oplog_entry IS NULL")
        with pytest.raises(SchemaVersionError, match=f"'{schema}' of this database") as caught:
            Store(schema).require_current(connection)
        assert caught.value.hint.endswith(line)


def test_a_fresh_log_has_nothing_to_tell(connection: Connection) -> None:
    status = STORE.read_status(connection)
    assert (status["entries"], status["aggregates"], status["position"]) == (0, 0, 0)
    assert (status["recorded_at"], status["type_revisions"]) == (None, 0)
    assert STORE.list_broken_links(connection) == []


def test_the_logs_state(connection: Connection) -> None:
    append(connection, "a", "b")
    append(connection, "a")
    STORE.insert_type(connection, SHAPE)
    snapshot = STORE.read_snapshot(connection)
    *_, last = STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=0)
    status = STORE.read_status(connection)
    assert (status["entries"], status["aggregates"]) == (3, 2)
    assert (status["position"], status["recorded_at"]) == (last.position, last.recorded_at)
    assert status["type_revisions"] == 1
    assert status["log_id"] == STORE.read_log_id(connection)
    assert status["entry_bytes"] > 0


@pytest.mark.parametrize(
    ("alteration", "broken"),
    [
        ("DELETE FROM {} WHERE version = 1", [2]),
        ("DELETE FROM {} WHERE version IN (2, 4)", [3, 5]),
        ("UPDATE {} SET prev_hash = sha256(prev_hash) WHERE version = 3", [3]),
        ("UPDATE {} SET prev_hash = sha256(prev_hash) WHERE version = 1", [1]),
        ("UPDATE {} SET entry_hash = sha256(entry_hash) WHERE version = 3", [4]),
        ("UPDATE {} SET version = 20 - version WHERE version IN (2, 3)", [4, 17, 18]),
    ],
)
def test_links_are_broken_alike_in_sql_and_in_python(
    connection: Connection, alteration: str, broken: list[int]
) -> None:
    for _ in range(5):
        append(connection, "a")
    connection.exec_driver_sql("ALTER TABLE oplog.oplog_entry DISABLE TRIGGER USER")
    connection.exec_driver_sql(alteration.format("oplog.oplog_entry"))
    by_sql = {
        link.version for link in STORE.list_broken_links(connection) if "ticket" not in link.reason
    }
    (page,) = STORE.iterate(connection, EntryFilter(), snapshot=ALL_VISIBLE)
    chain = ChainCheck()
    page.sort(key=lambda entry: entry.version)
    by_python = [entry.version for entry in page if chain.find_break(entry) is not None]
    assert by_sql == set(by_python) == set(broken)


def test_broken_links_are_told(connection: Connection) -> None:
    for _ in range(3):
        append(connection, "a", "b")
    connection.exec_driver_sql("SET session_replication_role = replica")
    for statement in (
        "ALTER TABLE oplog.oplog_entry DISABLE TRIGGER USER",
        "ALTER TABLE oplog.oplog_ticket DISABLE TRIGGER USER",
        "DELETE FROM oplog.oplog_entry WHERE aggregate_name = 'a' AND version = 2",
        "DELETE FROM oplog.oplog_ticket WHERE aggregate_name = 'b'",
    ):
        connection.exec_driver_sql(statement)
    found = STORE.list_broken_links(connection)
    assert [(link.aggregate, link.version, link.reason) for link in found] == [
        ("a", 3, "version 2 is missing before it"),
        *[("b", version, "the aggregate has no ticket") for version in (1, 2, 3)],
    ]
    assert isinstance(found[0], BrokenLink)
    assert len(STORE.list_broken_links(connection, limit=2)) == 2
    connection.exec_driver_sql(
        "INSERT INTO oplog.oplog_entry SELECT (e).* FROM (SELECT jsonb_populate_record(e, "
        "jsonb_build_object('id', n, 'version', n, 'aggregate_name', 'many', "
        "'entry_id', gen_random_uuid())) AS e "
        "FROM oplog.oplog_entry e, generate_series(1001, 1030) n "
        "WHERE e.aggregate_name = 'b' AND e.version = 1) x"
    )
    assert len(STORE.list_broken_links(connection)) == 20


def test_a_log_at_home_tells_whose_it_is(connection: Connection) -> None:
    system, database = connection.exec_driver_sql(
        "SELECT c.system_identifier, d.oid FROM pg_control_system() c, pg_database d "
        "WHERE d.datname = current_database()"
    ).one()
    assert STORE.require_home(connection) == Identity(str(system), database)
