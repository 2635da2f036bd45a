"""What the store reads back: pages, filters, places in time, links, keys, types, and its state."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from oplog.crypto.aggregate_chain import ChainCheck
from oplog.errors import SchemaVersionError
from oplog.postgres.standby import ALL_VISIBLE
from oplog.schema.tables import COMMENT_PREFIX
from oplog.store import Store
from oplog.store.home import Identity
from oplog.store.records import read_records
from oplog.store.rows import CREATED, BrokenLink, EntryFilter, Part
from tests.bound import make_shape
from tests.postgres import appending
from tests.postgres.appending import STORE, compute_hash, make_record, read_all

pytestmark = pytest.mark.postgres

SELECT_PARTS = "SELECT position, first, data FROM "

SHAPE = make_shape([("id", "integer"), ("name", "text")], key=["id"])


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def append(connection: Connection, *names: str, metadata: dict[str, str] | None = None) -> None:
    """One transaction on these aggregates; a record's data are the names."""
    pairs = list((metadata or {}).items())
    parts = [Part(0, "".join(sorted(names)).encode())]
    appending.append(connection, make_record(sorted(names), metadata=pairs, parts=parts))
    connection.commit()


def read(connection: Connection, filter: EntryFilter | None = None) -> list[str]:
    """Aggregates of each record, page by page, in both ways that there are."""
    snapshot = STORE.read_snapshot(connection)
    here, there = (
        [record for page in pages for record in page]
        for pages in (
            STORE.iterate(connection, filter or EntryFilter(), snapshot=how)
            for how in (snapshot, ALL_VISIBLE)
        )
    )
    assert here == there
    assert read_records(connection, "oplog", [r.position for r in reversed(here)]) == here
    return ["".join(record.aggregates) for record in here]


def test_records_come_page_by_page_in_order(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for names in ("b", "ac", "d", "e"):
        append(connection, *names)
    assert read(connection) == ["b", "ac", "d", "e"]
    for most, most_bytes, sizes in [
        # A page ends with the record that reaches either of the two.
        (2, 100, [2, 2]),
        (3, 100, [2, 2]),
        (4, 100, [3, 1]),
        (1, 100, [1, 1, 1, 1]),
        (100, 1, [1, 1, 1, 1]),
        (100, 2, [2, 2]),
        (100, 3, [2, 2]),
        (100, 4, [3, 1]),
    ]:
        monkeypatch.setattr("oplog.store.records.PAGE_ENTRIES", most)
        monkeypatch.setattr("oplog.store.records.PAGE_BYTES", most_bytes)
        assert read(connection) == ["b", "ac", "d", "e"]
        snapshot = STORE.read_snapshot(connection)
        pages = STORE.iterate(connection, EntryFilter(), snapshot=snapshot)
        assert [len(page) for page in pages] == sizes, (most, most_bytes)


def test_a_larger_record_is_a_page(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all its parts, which count by the size of the first."""
    large = make_record(list("abc"), parts=[Part(n, b"x" * 100) for n in range(3)])
    for record in (make_record(["a"], parts=[Part(0, b"x")]), large, make_record(["b"])):
        appending.append(connection, record)
    connection.commit()
    monkeypatch.setattr("oplog.store.records.PAGE_BYTES", 300)
    # On a standby it is a page of its own.
    for how, sizes in (STORE.read_snapshot(connection), [2, 1]), (ALL_VISIBLE, [1, 1, 1]):
        pages = list(STORE.iterate(connection, EntryFilter(), snapshot=how))
        assert [len(page) for page in pages] == sizes
        (found,) = [record for page in pages for record in page if len(record.parts) > 1]
        assert found.parts == tuple(large.parts)
        assert found.sealed_bytes == 300
    assert read_records(connection, "oplog", []) == []
    assert read_records(connection, "oplog", [99]) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_are_asked_for_where_there_are_some(connection: Connection, count: int) -> None:
    parts = [Part(0, bytes([n])) for n in range(count)]
    for record in (make_record(["a"]), make_record(["b"], parts=parts), make_record(["c"])):
        appending.append(connection, record)
    asked: list[Any] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.extend([list(parameters)] if statement.startswith(SELECT_PARTS) else [])

    sa.event.listen(connection.engine, "before_cursor_execute", note)
    connection.commit()
    _, found, _ = read_all(connection)
    sa.event.remove(connection.engine, "before_cursor_execute", note)
    assert found.parts == tuple(parts)
    assert asked == ([[[found.position]]] if count > 1 else [])


def test_filters_hold_together(connection: Connection) -> None:
    append(connection, "a", "b", metadata={"actor": "ada", "why": "x"})
    append(connection, "a", metadata={"actor": "bob"})
    append(connection, "c", metadata={"actor": "ada", "why": "y"})
    whole = STORE.read_page(
        connection, EntryFilter(), snapshot=STORE.read_snapshot(connection), after=0
    )
    second = whole[1].position
    assert read(connection, EntryFilter(aggregate="a")) == ["ab", "a"]
    assert read(connection, EntryFilter(aggregate="d")) == []
    assert read(connection, EntryFilter(aggregates=("c", "b"))) == ["ab", "c"]
    assert read(connection, EntryFilter(aggregates=("a", "c"), aggregate="b")) == ["ab"]
    assert read(connection, EntryFilter(aggregates=("c",), aggregate="b")) == []
    assert read(connection, EntryFilter(metadata=(("actor", "ada"),))) == ["ab", "c"]
    assert read(connection, EntryFilter(metadata=(("actor", "ada"), ("why", "y")))) == ["c"]
    assert read(connection, EntryFilter(metadata=(("why", "ada"),))) == []
    assert read(connection, EntryFilter(metadata=(("actor=ada", ""),))) == []
    assert read(connection, EntryFilter(through=second)) == ["ab", "a"]
    assert read(connection, EntryFilter(after=second)) == ["c"]
    assert read(connection, EntryFilter(after=second - 1)) == ["a", "c"]
    assert read(connection, EntryFilter(after=second, aggregate="a")) == []
    assert read(connection, EntryFilter(through=second, aggregate="b")) == ["ab"]
    for after, found in (whole[0].position, ["c"]), (whole[2].position, []):
        page = STORE.read_page(
            connection,
            EntryFilter(after=second),
            snapshot=STORE.read_snapshot(connection),
            after=after,
        )
        assert ["".join(record.aggregates) for record in page] == found


def test_a_token_is_no_proof(connection: Connection) -> None:
    """Pairs that have the same digest, or the same text with their equals sign, are others."""
    append(connection, "a", metadata={"k=a": "b"})
    append(connection, "b", metadata={"k": "a=b"})
    append(connection, "c", metadata={"a": "b", "b": "a"})
    assert read(connection, EntryFilter(metadata=(("k", "a=b"),))) == ["b"]
    assert read(connection, EntryFilter(metadata=(("k=a", "b"),))) == ["a"]
    # A key is not taken for the value of the pair before it.
    assert read(connection, EntryFilter(metadata=(("b", "b"),))) == []


def test_only_what_the_snapshot_shows(connection: Connection) -> None:
    append(connection, "a")
    snapshot = STORE.read_snapshot(connection)
    append(connection, "b")
    page = STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=0)
    assert [record.aggregates for record in page] == [("a",)]
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
    assert [record.aggregates for record in page] == [("a",)]


def test_records_hash_as_the_library_computes_it(connection: Connection) -> None:
    append(connection, "a", "b", metadata={"z": "1", "a": "2"})
    append(connection, "b", "c", metadata={"k": ""})
    append(connection, "a")
    records = read_all(connection)
    assert [record.metadata for record in records] == [(("z", "1"), ("a", "2")), (("k", ""),), ()]
    assert [record.versions for record in records] == [(1, 1), (2, 1), (2,)]
    assert [record.record_hash for record in records] == [compute_hash(r) for r in records]


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


def test_nothing_up_to_the_position_at_a_time_is_younger(connection: Connection) -> None:
    """The clock was set forward once, and back again: a record from the future, or the past."""
    for _ in range(4):
        append(connection, "a")
    one, two, three, four = read_all(connection)
    connection.exec_driver_sql("ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL")
    connection.exec_driver_sql(
        "UPDATE oplog.oplog_record SET created_at = created_at + CASE position "
        f"WHEN {two.position} THEN interval '1 year' ELSE interval '-1 year' END "
        f"WHERE position IN ({two.position}, {four.position})"
    )
    snapshot = STORE.read_snapshot(connection)
    year = timedelta(days=367)
    found = [
        STORE.find_position(connection, at, snapshot=snapshot)
        for at in (one.recorded_at - year, one.recorded_at, three.recorded_at, two.recorded_at)
    ]
    # Records after the one from the future wait for it; that from the past ends no stretch.
    assert found == [0, one.position, one.position, one.position]
    assert STORE.find_position(connection, one.recorded_at + year, snapshot=snapshot) == (
        four.position
    )


def test_tickets_that_were_never_written_are_left_out(connection: Connection) -> None:
    append(connection, "a", "b")
    append(connection, "b")
    created = make_record(["c"], expected=CREATED)
    appending.append(connection, created)
    # The first version of what was created has no ticket yet.
    assert STORE.read_tickets(connection, ["c", "b", "a", "never"]) == {"a": 1, "b": 2, "c": 1}
    assert STORE.read_tickets(connection, []) == {}


def test_keys_are_kept_once(connection: Connection) -> None:
    one, other = bytes(32), bytes([1] * 32)
    assert STORE.read_key_check(connection, "k") is None
    STORE.insert_key(connection, "k", check_value=one)
    STORE.insert_key(connection, "k", check_value=other)
    STORE.insert_key(connection, "l", check_value=other)
    assert STORE.read_key_check(connection, "k") == one
    assert STORE.list_keys(connection) == {"k": one, "l": other}


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
        connection.exec_driver_sql(f"COMMENT ON TABLE oplog.oplog_record IS '{comment}'")
        assert STORE.read_version(connection) == version
    for version, match, hint in [
        (0, "version 0, this library needs", "op.upgrade_oplog(version=1)"),
        (2, "version 2, this library knows", "upgrade the oplog package"),
    ]:
        connection.exec_driver_sql(
            f"COMMENT ON TABLE oplog.oplog_record IS 'oplog schema version {version}'"
        )
        with pytest.raises(SchemaVersionError, match=match) as caught:
            STORE.require_current(connection)
        assert hint in caught.value.hint
        assert caught.value.hint.endswith((")", "application"))
    for schema, line in [
        ("elsewhere", "op.create_oplog(version=1, schema='elsewhere')"),
        ("oplog", "op.create_oplog(version=1)"),
    ]:
        connection.exec_driver_sql("COMMENT ON TABLE oplog.oplog_record IS NULL")
        with pytest.raises(SchemaVersionError, match=f"'{schema}' of this database") as caught:
            Store(schema).require_current(connection)
        assert caught.value.hint.endswith(line)


def test_a_fresh_log_has_nothing_to_tell(connection: Connection) -> None:
    status = STORE.read_status(connection)
    assert (status["records"], status["entries"], status["aggregates"]) == (0, 0, 0)
    assert status["position"] == 0
    assert (status["recorded_at"], status["type_revisions"]) == (None, 0)
    assert STORE.list_broken_links(connection) == []


def test_the_logs_state(connection: Connection) -> None:
    append(connection, "a", "b")
    append(connection, "a")
    STORE.insert_type(connection, SHAPE)
    snapshot = STORE.read_snapshot(connection)
    *_, last = STORE.read_page(connection, EntryFilter(), snapshot=snapshot, after=0)
    status = STORE.read_status(connection)
    assert (status["records"], status["entries"], status["aggregates"]) == (2, 3, 2)
    assert (status["position"], status["recorded_at"]) == (last.position, last.recorded_at)
    assert status["type_revisions"] == 1
    assert status["log_id"] == STORE.read_log_id(connection)
    assert status["entry_bytes"] > 0


def alter(connection: Connection, *statements: str) -> None:
    """Change the log behind its back, in the open transaction."""
    for table in ("record_p0", "record", "entry", "ticket"):
        connection.exec_driver_sql(f"ALTER TABLE oplog.oplog_{table} DISABLE TRIGGER USER")
    for statement in statements:
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    ("alteration", "broken"),
    [
        ("DELETE FROM {} WHERE versions IS NULL", [2]),
        ("DELETE FROM {} WHERE versions[1] IN (2, 4)", [3, 5]),
        ("UPDATE {} SET prev_hashes = sha256(prev_hashes) WHERE versions[1] = 3", [3]),
        ("UPDATE {} SET prev_hashes = '' WHERE versions[1] = 3", [3]),
        ("UPDATE {} SET prev_hashes = NULL WHERE versions[1] = 3", [3]),
        ("UPDATE {} SET record_hash = sha256(record_hash) WHERE versions[1] = 3", [4]),
        ("UPDATE {} SET versions[1] = 20 - versions[1] WHERE versions[1] IN (2, 3)", [4, 17, 18]),
    ],
)
def test_links_are_broken_alike_in_sql_and_in_python(
    connection: Connection, alteration: str, broken: list[int]
) -> None:
    for _ in range(5):
        append(connection, "a")
    alter(connection, alteration.format("oplog.oplog_record"))
    by_sql = {
        link.version
        for link in STORE.list_broken_links(connection)
        if "ticket" not in link.reason and "oplog_entry" not in link.reason
    }
    (page,) = STORE.iterate(connection, EntryFilter(), snapshot=ALL_VISIBLE)
    links = sorted((link for record in page for link in record.list_links()), key=lambda x: x[2])
    chain = ChainCheck()
    by_python = [link.version for link in links if chain.find_break(link) is not None]
    assert by_sql == set(by_python) == set(broken)


def test_hashes_of_several_aggregates_are_told_apart(connection: Connection) -> None:
    """The hashes of a record are those of its versions over 1, in the aggregates' order."""
    append(connection, "b")
    append(connection, "d")
    append(connection, "a", "b", "c", "d", "e")
    append(connection, "a", "b", "c", "d", "e")
    assert STORE.list_broken_links(connection) == []
    swapped = "substr(prev_hashes, 33, 32) || substr(prev_hashes, 1, 32)"
    alter(
        connection,
        f"UPDATE oplog.oplog_record SET prev_hashes = {swapped} WHERE versions[2] = 2",
    )
    found = STORE.list_broken_links(connection)
    assert [(link.aggregate, link.version) for link in found] == [("b", 2), ("d", 2)]
    assert {link.reason for link in found} == {
        "its prev_hash is not the hash of the version before"
    }


def test_broken_links_are_told(connection: Connection) -> None:
    for _ in range(3):
        append(connection, "a", "b")
    first, second, third = read_all(connection)
    alter(
        connection,
        f"DELETE FROM oplog.oplog_record WHERE position = {second.position}",
        "UPDATE oplog.oplog_ticket SET version = 7 WHERE aggregate_name = 'b'",
        "INSERT INTO oplog.oplog_ticket (aggregate_name, version) VALUES ('z', 1), ('0', 0)",
        "DELETE FROM oplog.oplog_entry WHERE aggregate_name = 'a' AND version = 1",
        "UPDATE oplog.oplog_entry SET position = 99 WHERE aggregate_name = 'b' AND version = 3",
    )
    found = STORE.list_broken_links(connection)
    missing, gone = "version 2 is missing before it", "oplog_entry names a record that is not there"
    assert found == [
        BrokenLink("a", 1, first.position, "its row in oplog_entry is missing"),
        BrokenLink("a", 2, second.position, gone),
        BrokenLink("a", 3, third.position, missing),
        BrokenLink("b", 2, second.position, gone),
        BrokenLink("b", 3, third.position, missing),
        BrokenLink("b", 3, third.position, "oplog_entry names position 99 for it"),
        BrokenLink("z", 1, None, "the ticket has no entry"),
    ]
    assert STORE.list_broken_links(connection, limit=2) == found[:2]


def test_a_ticket_that_disagrees_is_told(connection: Connection) -> None:
    append(connection, "a", "b")
    append(connection, "b")
    (*_, last) = read_all(connection)
    alter(connection, "UPDATE oplog.oplog_ticket SET version = 7 WHERE aggregate_name = 'b'")
    assert STORE.list_broken_links(connection) == [
        BrokenLink("b", 2, last.position, "its ticket is at version 7")
    ]


def test_twenty_broken_links_are_enough(connection: Connection) -> None:
    for number in range(30):
        append(connection, f"{number:02}")
    alter(connection, "DELETE FROM oplog.oplog_entry")
    assert len(STORE.list_broken_links(connection)) == 20


def test_a_log_at_home_tells_whose_it_is(connection: Connection) -> None:
    system, database = connection.exec_driver_sql(
        "SELECT c.system_identifier, d.oid FROM pg_control_system() c, pg_database d "
        "WHERE d.datname = current_database()"
    ).one()
    assert STORE.require_home(connection) == Identity(str(system), database)
