"""The function that redeems tickets and writes a record, called as the store calls it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from oplog.crypto.hashing import ZERO_HASH
from oplog.postgres.exchange import execute
from oplog.schema.tables import IDEMPOTENCY_INDEX
from oplog.store import Store
from oplog.store.commit_lookup import OutcomeStore
from oplog.store.rows import CREATED, Part
from tests.concurrency.workload import waiting_for_lock
from tests.postgres.appending import (
    STORE,
    append,
    append_apart,
    append_names,
    assert_whole,
    compute_hash,
    make_record,
    name_many,
    read_all,
    sqlstate,
    state_append,
)
from tests.postgres.spoiling import allow_statement

pytestmark = pytest.mark.postgres

ONE, TWO = ["a"], ["a", "b"]
# In "C" order; another collation sorts "a" before "B".
MANY = ["B", "a", "a/é", "c"]


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def read_tickets(connection: Connection) -> dict[str, int]:
    rows = connection.exec_driver_sql("SELECT aggregate_name, version FROM oplog.oplog_ticket")
    return {row[0]: row[1] for row in rows}


# -- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("names", [ONE, MANY, name_many(1500)], ids=["one", "many", "1500"])
@pytest.mark.parametrize("first", [None, 0, CREATED])
def test_records_are_chained_as_the_library_computes_it(
    connection: Connection, names: list[str], first: int | None
) -> None:
    for version in range(1, 4):
        told = append(connection, make_record(names, expected=None if version > 1 else first))
        assert told == dict.fromkeys(names, version)
    connection.commit()
    heads = [ZERO_HASH] * 3
    for version, record in enumerate(assert_whole(connection), 1):
        assert record.aggregates == tuple(names)
        assert record.versions == (version,) * len(names)
        assert record.prev_hashes == tuple(heads[-1:] * len(names))
        heads.append(record.record_hash)
    assert read_tickets(connection) == dict.fromkeys(names, 3)


def test_what_is_stored_is_what_was_given(connection: Connection) -> None:
    metadata = [("actor", "ada"), ("actor", "bob"), ("none", ""), ("why", "'\"\\{},%s"), ("x", "☃")]
    given = make_record(MANY, metadata=metadata, idempotency_key="key", format=1, key_id="k.é")
    STORE.insert_key(connection, "k.é", check_value=bytes(32))
    before = connection.exec_driver_sql("SELECT pg_current_xact_id()::text::bigint").scalar()
    append(connection, given)
    now = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    begun = connection.exec_driver_sql("SELECT transaction_timestamp()").scalar_one()
    connection.commit()
    (record,) = read_all(connection)
    assert record.record_id == given.record_id
    assert (record.format, record.key_id, record.idempotency_key) == (1, "k.é", "key")
    assert record.metadata == tuple(metadata)
    assert record.parts == tuple(given.parts)
    assert record.transaction_id == before
    assert record.record_hash == compute_hash(record)
    assert begun <= record.recorded_at <= now


def test_nothing_is_stored_of_what_is_usual(connection: Connection) -> None:
    """No versions, hashes and metadata of what creates all its aggregates, and no tickets."""
    append(connection, make_record(MANY, expected=CREATED))
    row = connection.exec_driver_sql(
        "SELECT versions, prev_hashes, metadata, idempotency_key, parts FROM oplog.oplog_record"
    ).one()
    assert tuple(row) == (None, None, None, None, 1)
    for table in ("ticket", "token", "part"):
        count = connection.exec_driver_sql(f"SELECT count(*) FROM oplog.oplog_{table}")
        assert count.scalar() == 0, table


def test_a_record_has_parts(connection: Connection) -> None:
    parts = [
        Part(0, b"zero"),
        Part(0, b""),
        Part(1, b"\x00one"),
        Part(1, b"1"),
        Part(3, b"three" * 1000),
    ]
    append(connection, make_record(MANY, parts=parts))
    append(connection, make_record(MANY))
    connection.commit()
    first, second = assert_whole(connection)
    assert first.parts == tuple(parts)
    assert len(second.parts) == 1
    rows = connection.exec_driver_sql(
        "SELECT position, number, first, data FROM oplog.oplog_part ORDER BY number"
    )
    assert [(p, n, f, bytes(d)) for p, n, f, d in rows] == [
        (first.position, n, *parts[n]) for n in (1, 2, 3, 4)
    ]


def test_metadata_are_found_by_tokens(connection: Connection) -> None:
    """One for each pair, whatever characters it has, and however long it is."""
    pairs = [("actor", "ada"), ("a=", "b"), ("a", "=b"), ("none", ""), ("k", "é" * 512)]
    append(connection, make_record(ONE, metadata=pairs))
    connection.commit()
    (record,) = read_all(connection)
    rows = connection.exec_driver_sql("SELECT token, position FROM oplog.oplog_token")
    found = {tuple(row) for row in rows}
    asked = connection.exec_driver_sql(
        "SELECT hashtextextended((k || '=' || v) COLLATE \"C\", 0) "
        "FROM unnest(%s::text[], %s::text[]) AS m(k, v)",
        ([key for key, _ in pairs], [value for _, value in pairs]),
    )
    assert found == {(token, record.position) for token in asked.scalars()}


def test_versions_may_differ(connection: Connection) -> None:
    """Hashes are those of versions over 1 only, in the order of the aggregates."""
    append_names(connection, "b", "bd", "abcde", "e")
    *_, third, _ = assert_whole(connection)
    assert third.versions == (1, 3, 1, 2, 1)
    assert third.prev_hashes[0] == third.prev_hashes[2] == third.prev_hashes[4] == ZERO_HASH
    size = "SELECT octet_length(prev_hashes) FROM oplog.oplog_record WHERE position = %s"
    assert connection.exec_driver_sql(size, (third.position,)).scalar() == 64
    # Who does not claim to create an aggregate takes a ticket of its first version, too.
    assert read_tickets(connection) == {"a": 1, "b": 3, "c": 1, "d": 2, "e": 2}


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [0, 4, 5, -1])
def test_only_formats_that_readers_read(connection: Connection, form: int) -> None:
    record = make_record(ONE)._replace(format=form)
    with pytest.raises(DBAPIError, match=f"format {form} cannot be appended") as refused:
        append(connection, record)
    assert sqlstate(refused) == "22023"


@pytest.mark.parametrize("names", [ONE, TWO, name_many(40)], ids=["one", "two", "40"])
def test_the_version_a_ticket_was_taken_at_is_expected(
    connection: Connection, names: list[str]
) -> None:
    for version in range(3):
        append(connection, make_record(names, expected=version))
        connection.commit()
    for stale in (0, 2, 4):
        for place in {0, len(names) // 2, len(names) - 1}:
            expected: list[int | None] = [3] * len(names)
            expected[place] = stale
            with pytest.raises(DBAPIError, match=f"version {stale}, it is now at version 3") as no:
                append(connection, make_record(names, expected=expected))
            assert sqlstate(no) == "OP001"
            assert f"'{names[place]}'" in str(no.value.orig)
            connection.rollback()
    assert append(connection, make_record(names, expected=3)) == dict.fromkeys(names, 4)


@pytest.mark.parametrize(
    "names", [["b", "a"], ["a", "a"], ["a", "B"], ["a", "c", "b"], []], ids=str
)
def test_aggregates_out_of_order_are_refused(connection: Connection, names: list[str]) -> None:
    """Another order would be half of a deadlock, also where all of them are new."""
    for expected in (None, CREATED):
        with pytest.raises(DBAPIError) as caught:
            append(connection, make_record(names, expected=expected))
        assert sqlstate(caught) == "22023"
        connection.rollback()


NONSENSE: dict[str, dict[str, str]] = {
    "no aggregates": {"p_aggregates": "NULL"},
    "an aggregate without a name": {"p_aggregates": "ARRAY['a', NULL]"},
    "an aggregate with an empty name": {"p_aggregates": "ARRAY['', 'b']"},
    "a long name": {"p_aggregates": "ARRAY['a', repeat('b', 1025)]"},
    "a long name of few letters": {"p_aggregates": "ARRAY['a', repeat('é', 513)]"},
    "too many names": {
        "p_aggregates": "(SELECT array_agg(concat(to_char(n, 'FM000000'), repeat('x', 1000)) "
        "ORDER BY n) FROM generate_series(1, 96100) n)"
    },
    "a square of aggregates": {"p_aggregates": "ARRAY[['a', 'b'], ['c', 'd']]"},
    "aggregates from 0 on": {"p_aggregates": "'[0:1]={a,b}'::text[]"},
    "too few versions": {"p_expected": "ARRAY[1]"},
    "too many versions": {"p_expected": "ARRAY[1, 1, 1]"},
    "a square of versions": {"p_expected": "ARRAY[[0, 0]]"},
    "versions from 0 on": {"p_expected": "'[0:1]={0,0}'::bigint[]"},
    "no format": {"p_format": "NULL"},
    "no data": {"p_data": "NULL"},
    "large data": {"p_data": "convert_to(repeat('x', 18 * 1024 * 1024 + 1), 'UTF8')"},
    "no key id": {"p_key_id": "NULL"},
    "sealed without a key id": {"p_format": "1::smallint"},
    "plaintext with a key id": {"p_key_id": "'k'"},
    "a long key id": {"p_format": "1::smallint", "p_key_id": "repeat('k', 129)"},
    "no id": {"p_record": "NULL"},
    "no word on durability": {"p_asynchronous": "NULL"},
    "an empty idempotency key": {"p_idempotency_key": "''"},
    "a long idempotency key": {"p_idempotency_key": "repeat('k', 1025)"},
    "a long idempotency key of few letters": {"p_idempotency_key": "repeat('é', 513)"},
    "half a pair": {"p_metadata": "ARRAY['a', 'b', 'c']"},
    "no pair": {"p_metadata": "'{}'"},
    "a square of metadata": {"p_metadata": "ARRAY[['a', 'b'], ['c', 'd']]"},
    "metadata from 0 on": {"p_metadata": "'[0:1]={a,b}'::text[]"},
    "a key without a value": {"p_metadata": "ARRAY['a', NULL]"},
    "a value without a key": {"p_metadata": "ARRAY['', 'b']"},
    "a long key": {"p_metadata": "ARRAY[repeat('k', 129), 'b']"},
    "a long value": {"p_metadata": "ARRAY['k', 'b', 'k', repeat('v', 1025)]"},
    "a long value of few letters": {"p_metadata": "ARRAY['k', repeat('é', 513)]"},
    "too many pairs": {"p_metadata": "array_fill('k'::text, ARRAY[514])"},
    "a part without data": {"p_firsts": "ARRAY[1]", "p_more": "ARRAY[NULL]::bytea[]"},
    "a part without a place": {"p_firsts": "NULL", "p_more": "ARRAY['x'::bytea]"},
    "a place without a part": {"p_firsts": "ARRAY[1]", "p_more": "NULL"},
    "no further parts": {"p_firsts": "'{}'", "p_more": "'{}'"},
    "more parts than places": {"p_firsts": "ARRAY[1]", "p_more": "ARRAY['x', 'y']::bytea[]"},
    "more places than parts": {"p_firsts": "ARRAY[1, 1]", "p_more": "ARRAY['x'::bytea]"},
    "a missing place": {"p_firsts": "ARRAY[NULL]::integer[]", "p_more": "ARRAY['x'::bytea]"},
    "parts from 0 on": {"p_firsts": "'[0:0]={1}'", "p_more": "'[0:0]={x}'"},
    "a part before the first": {"p_firsts": "ARRAY[-1]", "p_more": "ARRAY['x'::bytea]"},
    "a part after the last": {"p_firsts": "ARRAY[2]", "p_more": "ARRAY['x'::bytea]"},
    "parts in disorder": {"p_firsts": "ARRAY[1, 0]", "p_more": "ARRAY['x', 'y']::bytea[]"},
    "too many parts": {
        "p_firsts": "array_fill(1, ARRAY[65536])",
        "p_more": "array_fill('x'::bytea, ARRAY[65536])",
    },
    "a large part": {
        "p_firsts": "ARRAY[1]",
        "p_more": "ARRAY[convert_to(repeat('x', 18 * 1024 * 1024 + 1), 'UTF8')]",
    },
    "large parts": {
        # Each of them may be, and all but the first together.
        "p_data": "convert_to(repeat('x', 16 * 1024 * 1024), 'UTF8')",
        "p_firsts": "array_fill(1, ARRAY[8])",
        "p_more": "array_fill(convert_to(repeat('x', 16 * 1024 * 1024), 'UTF8'), ARRAY[8])",
    },
}


@pytest.mark.parametrize("changed", NONSENSE.values(), ids=NONSENSE.keys())
def test_nothing_is_stored_that_nobody_could_read(
    connection: Connection, changed: dict[str, str]
) -> None:
    """A role that may call the function may call it with anything."""
    connection.exec_driver_sql(state_append(p_aggregates="ARRAY['x']")).close()
    connection.commit()
    with pytest.raises(DBAPIError) as refused:
        connection.exec_driver_sql(state_append(**changed))
    assert sqlstate(refused) == "22023"
    connection.rollback()
    assert len(read_all(connection)) == 1


def test_how_long_a_key_id_is(connection: Connection) -> None:
    """Of keys that are known: others would be refused for that."""
    connection.exec_driver_sql(allow_statement("oplog_key_form"))
    for length in (0, 128, 129):
        connection.execute(
            sa.text("INSERT INTO oplog.oplog_key (key_id, check_value) VALUES (:id, sha256(''))"),
            {"id": "k" * length},
        )
    connection.commit()
    append(connection, make_record(ONE, format=1, key_id="k" * 128))
    connection.commit()
    for length in (0, 129):
        with pytest.raises(DBAPIError) as refused:
            append(connection, make_record(ONE, format=1, key_id="k" * length))
        assert sqlstate(refused) == "22023"
        connection.rollback()


def test_the_largest_that_is_accepted(connection: Connection) -> None:
    """Limits are those of the library, so that nothing which it builds is refused."""
    names = [f"{n:04}{'n' * 1020}" for n in range(300)]
    metadata = [("k" * 128, "v" * 1024)] * 256
    record = make_record(names, metadata=metadata, idempotency_key="k" * 1024, expected=CREATED)
    large = [Part(0, b"x" * (16 * 1024 * 1024 + 1024)), *(Part(n, b"y") for n in range(300))]
    append(connection, record._replace(parts=large))
    connection.commit()
    (stored,) = read_all(connection)
    assert stored.record_hash == compute_hash(stored)


RESERVED: dict[str, tuple[dict[str, str], bool]] = {
    # What is appended, and whether the owner may.
    "a mark": ({"p_format": "3::smallint", "p_data": "''"}, False),
    "a mark of a bypass": (
        {"p_format": "3::smallint", "p_data": "''", "p_aggregates": "ARRAY['oplog/bypass']"},
        False,
    ),
    "a mark of one aggregate": (
        {"p_format": "3::smallint", "p_data": "''", "p_aggregates": "ARRAY['x']"},
        False,
    ),
    "a request with parts": (
        {
            "p_format": "3::smallint",
            "p_data": "''",
            "p_aggregates": "ARRAY['oplog/request/x']",
            "p_firsts": "ARRAY[0]",
            "p_more": "ARRAY['x'::bytea]",
        },
        False,
    ),
    "a request with a payload": (
        {"p_format": "3::smallint", "p_aggregates": "ARRAY['oplog/request/x']"},
        False,
    ),
    "a request with something else": (
        {
            "p_format": "3::smallint",
            "p_data": "''",
            "p_aggregates": "ARRAY['oplog/request/x', 'oplog/request/y']",
        },
        False,
    ),
    "at the marks of a quarantine": ({"p_aggregates": "ARRAY['oplog/quarantine']"}, False),
    "an adoption": (
        {"p_aggregates": "ARRAY['adopted/x']", "p_metadata": "ARRAY['a', 'b', 'adopted', 'x']"},
        True,
    ),
    "the end of a type": (
        {"p_aggregates": "ARRAY['adopted/x']", "p_metadata": "ARRAY['retired', 'x']"},
        True,
    ),
    "beside an adoption": (
        {
            "p_aggregates": "ARRAY['a', 'adopted/account', 'z']",
            "p_metadata": "ARRAY['adopted', 'account']",
        },
        True,
    ),
}


@pytest.mark.parametrize(("changed", "owner"), RESERVED.values(), ids=RESERVED.keys())
def test_what_the_log_says_of_itself_is_not_appended_by_others(
    engine: Engine, changed: dict[str, str], owner: bool
) -> None:
    other = "CREATE ROLE other; GRANT USAGE ON SCHEMA oplog TO other; "
    grant = "GRANT EXECUTE ON FUNCTION oplog.oplog_append TO other"
    with engine.connect() as connection:
        if owner:
            connection.exec_driver_sql(state_append(**changed)).close()
        else:
            with pytest.raises(DBAPIError) as refused:
                connection.exec_driver_sql(state_append(**changed))
            assert sqlstate(refused) == "42501"
            connection.rollback()
        connection.exec_driver_sql(f"{other}{grant}")
        connection.exec_driver_sql("SET SESSION AUTHORIZATION other")
        # Names that rows may have, and a value that means nothing by itself.
        for names in ("ARRAY['b']", "ARRAY['adopted/x']", "ARRAY['oplog/bypass']"):
            connection.exec_driver_sql(
                state_append(p_aggregates=names, p_metadata="ARRAY['a', 'adopted']")
            ).close()
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql(state_append(**changed))
        assert sqlstate(refused) == "42501"
        connection.rollback()


def test_the_log_writes_marks_of_its_own(connection: Connection) -> None:
    mark = state_append(
        p_format="3::smallint", p_data="''", p_aggregates="ARRAY['oplog/bypass']"
    ).replace("oplog_append(", "oplog_append_mark(")
    connection.exec_driver_sql(mark).close()
    connection.commit()
    (record,) = assert_whole(connection)
    assert (record.format, record.aggregates) == (3, ("oplog/bypass",))


@pytest.mark.parametrize("names", [ONE, TWO])
def test_a_record_that_was_declared_aborted_is_refused(
    connection: Connection, names: list[str]
) -> None:
    record = make_record(names)
    assert OutcomeStore("oplog").declare_aborted(connection, record.record_id) is True
    connection.commit()
    for _ in range(2):
        with pytest.raises(DBAPIError) as caught:
            append(connection, record)
        assert sqlstate(caught) == "OP006"
        connection.rollback()
    append_names(connection, *names)
    assert len(assert_whole(connection)) == len(names)


@pytest.mark.parametrize("names", [ONE, TWO])
def test_a_transaction_must_wait_for_its_durability(
    connection: Connection, names: list[str]
) -> None:
    connection.exec_driver_sql("SET synchronous_commit = off")
    connection.commit()
    with pytest.raises(DBAPIError) as caught:
        append(connection, make_record(names))
    assert sqlstate(caught) == "OP005"
    connection.rollback()
    append(connection, make_record(names), store=Store("oplog", asynchronous_commit=True))


@pytest.mark.parametrize("names", [ONE, TWO])
def test_what_the_guards_counted_is_settled(connection: Connection, names: list[str]) -> None:
    with pytest.raises(DBAPIError) as caught:
        append(connection, make_record(names), tally=12)
    assert sqlstate(caught) == "OP003"


def test_an_idempotency_key_is_used_once(connection: Connection) -> None:
    append_names(connection, "a", idempotency_key="key")
    with pytest.raises(IntegrityError) as refused:
        append_names(connection, "b", idempotency_key="key")
    original: Any = refused.value.orig
    assert original.diag.constraint_name == IDEMPOTENCY_INDEX
    connection.rollback()
    append_names(connection, "b", idempotency_key="k" * 1024)
    append_names(connection, "c", idempotency_key=None)
    append_names(connection, "d", idempotency_key=None)
    found = [record.idempotency_key for record in assert_whole(connection)]
    assert found == ["key", "k" * 1024, None, None]


@pytest.mark.parametrize("expected", [None, 2])
def test_a_head_that_was_removed_by_hand_is_missed(
    connection: Connection, expected: int | None
) -> None:
    append_names(connection, "ab", "ab")
    connection.exec_driver_sql("ALTER TABLE oplog.oplog_record DISABLE TRIGGER USER")
    connection.exec_driver_sql("DELETE FROM oplog.oplog_record WHERE versions IS NOT NULL")
    connection.commit()
    many = [f"a{n:02}" for n in range(40)]
    for names, missed in (
        (["a"], "a"),
        (["b"], "b"),
        (["0", "b"], "b"),
        ([*many, "b"], "b"),
        (["a", *many, "b"], "a"),
    ):
        with pytest.raises(DBAPIError, match=f"version 2 of aggregate '{missed}'") as refused:
            append(connection, make_record(names, expected=[None] * (len(names) - 1) + [expected]))
        assert sqlstate(refused) == "OP009"
        connection.rollback()


# -- locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [ONE, TWO, name_many(40)], ids=["one", "two", "40"])
def test_a_position_is_drawn_when_the_tickets_are_held(engine: Engine, names: list[str]) -> None:
    """Who waited for a ticket comes after whoever wrote meanwhile."""
    for _ in range(2):
        append_apart(engine, names[-1:])
    with ThreadPoolExecutor(1) as pool, engine.connect() as holder:
        holder.exec_driver_sql("SELECT FROM oplog.oplog_ticket FOR UPDATE")
        with waiting_for_lock(engine):
            waiter = pool.submit(append_apart, engine, names)
        append_apart(engine, ["meanwhile"])
        holder.rollback()
        waiter.result()
    with engine.connect() as connection:
        told = [list(record.aggregates) for record in assert_whole(connection)]
    assert told == [names[-1:], names[-1:], ["meanwhile"], names]


@pytest.mark.parametrize("more", [0, 40])
def test_tickets_are_redeemed_in_the_order_of_their_names(engine: Engine, more: int) -> None:
    """Whoever waits for the first holds no later one, or two of them would deadlock."""
    names = [*TWO, *(f"c{n:02}" for n in range(more))]
    for _ in range(2):
        append_apart(engine, names)
    with ThreadPoolExecutor(1) as pool, engine.connect() as holder:
        first = sa.text("SELECT FROM oplog.oplog_ticket WHERE aggregate_name = 'a' FOR UPDATE")
        second = sa.text(
            "SELECT FROM oplog.oplog_ticket WHERE aggregate_name = 'b' FOR UPDATE NOWAIT"
        )
        holder.execute(first)
        with waiting_for_lock(engine):
            waiter = pool.submit(append_apart, engine, names)
        holder.execute(second)
        holder.rollback()
        waiter.result()


@pytest.mark.parametrize("commits", [True, False])
def test_append_and_declaration_wait_for_each_other(engine: Engine, *, commits: bool) -> None:
    record = make_record(ONE)
    with ThreadPoolExecutor(1) as pool, engine.connect() as appending:
        append(appending, record)
        with waiting_for_lock(engine):
            declared = pool.submit(_declare, engine, record.record_id)
        (appending.commit if commits else appending.rollback)()
        assert declared.result() is not commits
    with ThreadPoolExecutor(1) as pool, engine.connect() as declaring:
        other = make_record(["z"])
        OutcomeStore("oplog").declare_aborted(declaring, other.record_id)
        with waiting_for_lock(engine):
            appended = pool.submit(_try_append, engine, other)
        (declaring.commit if commits else declaring.rollback)()
        assert appended.result() == ("OP006" if commits else None)


def _declare(engine: Engine, record_id: UUID) -> bool:
    with engine.begin() as connection:
        return OutcomeStore("oplog").declare_aborted(connection, record_id)


def _try_append(engine: Engine, record: Any) -> str | None:
    try:
        with engine.begin() as connection:
            append(connection, record)
    except DBAPIError as refused:
        return sqlstate(refused)
    return None


def test_the_function_is_planned_once(connection: Connection) -> None:
    """A plan for each call would plan the partitioned tables each time."""
    for n in range(8):
        append(connection, make_record([f"a{n}"]))
    settings: Sequence[str] = connection.exec_driver_sql(
        "SELECT proconfig FROM pg_proc WHERE oid = 'oplog.oplog_append'::regproc"
    ).scalar_one()
    assert "plan_cache_mode=force_generic_plan" in settings
    assert connection.exec_driver_sql("SHOW plan_cache_mode").scalar() == "auto"


def test_it_is_one_statement(connection: Connection) -> None:
    """What the store binds is the call, whatever the record holds."""
    record = make_record(MANY, metadata=[("k", "v")], parts=[Part(0, b"a"), Part(1, b"b")])
    message = STORE.bind_append(record._replace(record_id=uuid4()))
    assert message.statement.count("oplog_append(") == 1
    assert message.statement.startswith('SELECT "oplog".oplog_append(')
    execute(connection, message)
