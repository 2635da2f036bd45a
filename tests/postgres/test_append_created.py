"""Aggregates that a transaction believes it creates: without tickets, unless somebody was faster.

The key of `oplog_entry` decides who was. Whoever was wrong goes the way of the tickets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from string import ascii_lowercase, ascii_uppercase
from uuid import uuid4

import pytest
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from oplog.store.intake import RestorationStore
from oplog.store.removal import PruningStore, Watermark
from oplog.store.rows import CREATED
from tests.concurrency.workload import waiting_for_lock
from tests.postgres.appending import (
    STORE,
    append,
    append_apart,
    append_names,
    assert_whole,
    make_record,
    read_all,
    sqlstate,
)

pytestmark = pytest.mark.postgres

HIGHER = ["REPEATABLE READ", "SERIALIZABLE"]
WIDE = ascii_uppercase + ascii_lowercase[:20]
"""So many aggregates, by one letter each, that tickets are redeemed by statements over all."""


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def create(engine: Engine, *names: str, isolation: str = "READ COMMITTED") -> dict[str, int]:
    return append_apart(engine, names, expected=CREATED, isolation=isolation)


@contextmanager
def beside(engine: Engine, work: Callable[[], object]) -> Iterator[Future[object]]:
    """Let somebody else work, who waits for a lock when the block begins and gets it there."""
    with ThreadPoolExecutor(1) as pool:
        with waiting_for_lock(engine):
            working = pool.submit(work)
        yield working


# -- alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["b", "abc", WIDE])
@pytest.mark.parametrize("versions", [1, 2, 3])
def test_what_is_there_already_takes_the_next_version(
    connection: Connection, names: str, versions: int
) -> None:
    """With a ticket or, at its first version, without one."""
    for _ in range(versions):
        append_names(connection, "b", expected=CREATED)
    told = append(connection, make_record(list(names), expected=CREATED))
    assert told == {**dict.fromkeys(names, 1), "b": versions + 1}
    connection.commit()
    record = assert_whole(connection)[-1]
    assert record.versions == tuple(told.values())


def test_knowledge_and_belief_in_one_record(connection: Connection) -> None:
    """Each aggregate by what is known of it, in all combinations, right and wrong."""
    append_names(connection, *"bbdef", "e", expected=None)
    names = list("abcdefg")
    expected = [CREATED, 2, None, CREATED, None, 1, CREATED]
    told = append(connection, make_record(names, expected=expected))
    assert told == {"a": 1, "b": 3, "c": 1, "d": 2, "e": 3, "f": 2, "g": 1}
    connection.commit()
    assert_whole(connection)


def test_knowledge_and_belief_in_a_wide_record(connection: Connection) -> None:
    """The same, where most are known: first, in between and last."""
    names = list(WIDE)
    append_names(connection, WIDE[1:-1], WIDE[::2])
    expected = [CREATED if n % 5 == 0 else None for n in range(len(names))]
    expected[1:5] = 1, 2, None, 2
    told = append(connection, make_record(names, expected=expected))
    connection.commit()
    assert [told[name] for name in "ABCDEFt"] == [2, 2, 3, 2, 3, 2, 1]
    record = assert_whole(connection)[-1]
    assert record.versions == tuple(told.values())
    # All of them have a ticket by now, but for the one that is new.
    again = append(connection, make_record(names, expected=list(told.values())))
    assert again == {name: version + 1 for name, version in told.items()}
    for place in (0, 7, 45):
        wrong = [version + 1 for version in told.values()]
        wrong[place] += 1
        savepoint = connection.begin_nested()
        with pytest.raises(DBAPIError, match=f"aggregate '{names[place]}' was taken") as refused:
            append(connection, make_record(names, expected=wrong))
        assert sqlstate(refused) == "OP001"
        savepoint.rollback()


def test_a_known_version_that_is_wrong_is_refused_among_created_ones(
    connection: Connection,
) -> None:
    append_names(connection, "ab", expected=CREATED)
    with pytest.raises(DBAPIError, match="aggregate 'b' was taken at version 2") as refused:
        append(connection, make_record(list("abc"), expected=[CREATED, 2, CREATED]))
    assert sqlstate(refused) == "OP001"


@pytest.mark.parametrize("known", [0, None])
def test_a_first_ticket_is_one_for_what_is_new(connection: Connection, known: int | None) -> None:
    append(connection, make_record(list("ab"), expected=[known, CREATED]))
    append(connection, make_record(list("bc"), expected=[CREATED, known]))
    connection.commit()
    first, second = assert_whole(connection)
    assert (first.versions, second.versions) == ((1, 1), (2, 1))


# -- after pruning, and in a restored log -------------------------------------------------------


def prune(connection: Connection, *numbers: int) -> None:
    """Remove records by their number, in the open transaction."""
    records = read_all(connection)
    positions = [records[n].position for n in numbers]
    store = PruningStore("oplog")
    gone = sum(len(records[n].aggregates) for n in numbers)
    store.write_watermark(
        connection,
        Watermark(
            uuid4(), "memory:", 0, len(numbers), bytes(32), position=positions[-1], entries=gone
        ),
    )
    assert store.remove(connection, positions, kept=[]) == len(positions)


@pytest.mark.parametrize("expected", [CREATED, None])
@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("names", ["b", "abc", WIDE])
def test_what_was_pruned_is_not_created_again(
    connection: Connection, names: str, kept: int, expected: int | None
) -> None:
    """Its head is continued, whether it is in the log or with the ticket."""
    append_names(connection, "b", "b", "b", "x", expected=CREATED)
    head = read_all(connection)[2]
    prune(connection, *range(3 - kept))
    told = append(connection, make_record(list(names), expected=expected))
    connection.commit()
    assert told == {**dict.fromkeys(names, 1), "b": 4}
    *_, record = read_all(connection)
    assert record.prev_hashes[names.index("b")] == head.record_hash
    assert STORE.list_broken_links(connection) == []
    assert STORE.read_status(connection)["entries"] == kept + 1 + len(names)
    assert STORE.read_status(connection)["aggregates"] == 1 + len(names)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", *HIGHER])
def test_what_is_being_pruned_is_not_created_again(engine: Engine, isolation: str) -> None:
    for _ in range(2):
        create(engine, "b")
    with engine.connect() as pruning:
        prune(pruning, 0, 1)
        with beside(engine, lambda: try_create(engine, "b", isolation=isolation)) as told:
            pruning.commit()
            assert told.result() == ({"b": 3} if isolation == "READ COMMITTED" else "40001")
    assert create(engine, "b") == {"b": 3 if told.result() == "40001" else 4}
    with engine.connect() as connection:
        assert STORE.list_broken_links(connection) == []


@pytest.mark.parametrize("expected", [CREATED, None])
@pytest.mark.parametrize("many", [1, 50])
def test_what_only_a_snapshot_had_is_not_created_again(
    connection: Connection, many: int, expected: int | None
) -> None:
    append_names(connection, "a", expected=CREATED)
    store = RestorationStore("oplog")
    stage = store.stage_heads(connection)
    hashes = {"a": read_all(connection)[0].record_hash, "b": b"b" * 32, "c": b"c" * 32}
    for name, version in ("a", 1), ("b", 1), ("c", 7):
        connection.exec_driver_sql(
            f"INSERT INTO {stage} VALUES (%s, %s, %b)", (name, version, hashes[name])
        )
    store.keep_heads(connection)
    names = ["a", "b", "c", *(f"d{n:02}" for n in range(many))]
    told = append(connection, make_record(names, expected=expected))
    assert told == {**dict.fromkeys(names, 1), "a": 2, "b": 2, "c": 8}
    connection.commit()
    record = read_all(connection)[-1]
    assert record.prev_hashes[:3] == tuple(hashes.values())


@pytest.mark.parametrize("names", ["b", WIDE])
def test_what_was_restored_has_no_tickets(connection: Connection, names: str) -> None:
    """The newest entry tells the version, however many there are."""
    append_names(connection, "b", "b", "b")
    connection.exec_driver_sql("ALTER TABLE oplog.oplog_ticket DISABLE TRIGGER USER")
    connection.exec_driver_sql("DELETE FROM oplog.oplog_ticket")
    assert append(connection, make_record(list(names)))["b"] == 4
    connection.commit()
    assert_whole(connection)


@pytest.mark.parametrize("names", ["b", WIDE])
def test_an_older_head_is_not_continued(connection: Connection, names: str) -> None:
    """What was pruned left its head; the record after it was removed by hand."""
    append_names(connection, "b", "b")
    prune(connection, 0, 1)
    append_names(connection, "b")
    connection.exec_driver_sql("ALTER TABLE oplog.oplog_record DISABLE TRIGGER USER")
    connection.exec_driver_sql("DELETE FROM oplog.oplog_record")
    with pytest.raises(DBAPIError, match="version 3 of aggregate 'b' is not in") as refused:
        append(connection, make_record(list(names)))
    assert sqlstate(refused) == "OP009"


def test_only_what_is_not_created_takes_a_ticket(connection: Connection) -> None:
    expected = [CREATED if n % 5 == 0 else None for n in range(len(WIDE))]
    append(connection, make_record(list(WIDE), expected=expected))
    names = connection.exec_driver_sql("SELECT aggregate_name FROM oplog.oplog_ticket").scalars()
    assert sorted(names) == [name for n, name in enumerate(WIDE) if n % 5]


# -- two at once --------------------------------------------------------------------------------


def try_create(
    engine: Engine, *names: str, isolation: str = "READ COMMITTED"
) -> dict[str, int] | str | None:
    """The versions, or the SQLSTATE of the refusal."""
    try:
        return create(engine, *names, isolation=isolation)
    except DBAPIError as refused:
        return sqlstate(refused)


@pytest.mark.parametrize("names", ["b", "abc", WIDE])
@pytest.mark.parametrize("commits", [True, False])
def test_of_two_creators_the_second_waits(engine: Engine, names: str, *, commits: bool) -> None:
    with engine.connect() as first:
        append(first, make_record(["b"], expected=CREATED))
        with beside(engine, lambda: create(engine, *names)) as second:
            (first.commit if commits else first.rollback)()
            assert second.result() == {**dict.fromkeys(names, 1), "b": 2 if commits else 1}
    with engine.connect() as connection:
        records = assert_whole(connection)
    assert [list(r.aggregates) for r in records] == [["b"]] * commits + [list(names)]


@pytest.mark.parametrize("isolation", HIGHER)
@pytest.mark.parametrize("names", ["b", "abc", WIDE])
@pytest.mark.parametrize("commits", [True, False])
def test_of_two_creators_the_second_fails_to_serialise(
    engine: Engine, names: str, isolation: str, *, commits: bool
) -> None:
    with engine.connect() as first:
        append(first, make_record(["b"], expected=CREATED))
        with beside(engine, lambda: try_create(engine, *names, isolation=isolation)) as second:
            (first.commit if commits else first.rollback)()
            assert second.result() == ("40001" if commits else dict.fromkeys(names, 1))
    # It has a snapshot with the first one now.
    again = try_create(engine, *names, isolation=isolation)
    assert again == {**dict.fromkeys(names, 1 if commits else 2), "b": 2}
    with engine.connect() as connection:
        assert_whole(connection)


@pytest.mark.parametrize("isolation", HIGHER)
def test_an_old_snapshot_does_not_create_again(engine: Engine, isolation: str) -> None:
    """The other committed before the append, and after the transaction began."""
    with engine.connect().execution_options(isolation_level=isolation) as old:
        old.exec_driver_sql("SELECT 1 FROM oplog.oplog_entry").all()
        create(engine, "b")
        with pytest.raises(DBAPIError) as refused:
            append(old, make_record(["a", "b"], expected=CREATED))
        assert sqlstate(refused) == "40001"


def test_who_drew_first_and_came_second_begins_again(engine: Engine) -> None:
    """A position is drawn before the wait: the second version may not stand before the first."""
    with engine.connect() as holder:
        append(holder, make_record(["z"], expected=CREATED, idempotency_key="key"))
        with beside(engine, lambda: try_create_keyed(engine, ["a", "b"])) as second:
            assert create(engine, "b") == {"b": 1}
            holder.rollback()
            assert second.result() == "OP001"
    assert create(engine, "a", "b") == {"a": 1, "b": 2}
    with engine.connect() as connection:
        assert_whole(connection)


def try_create_keyed(engine: Engine, names: Sequence[str]) -> dict[str, int] | str | None:
    """With the idempotency key that somebody holds, so that it waits after drawing a position."""
    try:
        return append_apart(engine, names, expected=CREATED, idempotency_key="key")
    except DBAPIError as refused:
        return sqlstate(refused)


# -- a ticket against a creator -----------------------------------------------------------------


def try_append(engine: Engine, names: str, expected: int | None) -> dict[str, int] | str | None:
    try:
        return append_apart(engine, list(names), expected=expected)
    except DBAPIError as refused:
        return sqlstate(refused)


@pytest.mark.parametrize("names", ["b", "ab", WIDE])
def test_who_saw_nothing_and_met_a_creator_is_refused(engine: Engine, names: str) -> None:
    with engine.connect() as creator:
        append(creator, make_record(["b"], expected=CREATED))
        with beside(engine, lambda: try_append(engine, names, 0)) as waiting:
            creator.commit()
            assert waiting.result() == "OP001"
    assert try_append(engine, "b", 0) == "OP001"
    assert try_append(engine, "b", 1) == {"b": 2}
    with engine.connect() as connection:
        assert_whole(connection)


@pytest.mark.parametrize("names", ["b", "abc", WIDE])
def test_who_expects_nothing_comes_after_the_creator(engine: Engine, names: str) -> None:
    with engine.connect() as creator:
        append(creator, make_record(["b"], expected=CREATED))
        with beside(engine, lambda: try_append(engine, names, None)) as waiting:
            creator.commit()
            assert waiting.result() == {**dict.fromkeys(names, 1), "b": 2}
    with engine.connect() as connection:
        assert_whole(connection)


@pytest.mark.parametrize(("known", "told"), [(None, 2), (0, "OP001")])
@pytest.mark.parametrize("names", ["Az", f"{WIDE}z"])
def test_what_was_created_while_one_waited_for_others(
    engine: Engine, names: str, known: int | None, told: int | str
) -> None:
    """At the first aggregate, before the look at the last; however many are looked at together."""
    for _ in range(2):
        append_apart(engine, ["A"])
    with engine.connect() as holder:
        append(holder, make_record(["A"]))
        expected = [None] * (len(names) - 1) + [known]
        with beside(engine, lambda: try_expecting(engine, names, expected)) as waiting:
            assert create(engine, "z") == {"z": 1}
            holder.commit()
            found = waiting.result()
    assert (found["z"] if isinstance(found, dict) else found) == told
    with engine.connect() as connection:
        assert_whole(connection)


def try_expecting(
    engine: Engine, names: str, expected: Sequence[int | None]
) -> dict[str, int] | str | None:
    try:
        return append_apart(engine, list(names), expected=expected)
    except DBAPIError as refused:
        return sqlstate(refused)


@pytest.mark.parametrize("known", [0, None])
def test_a_creator_comes_after_who_took_the_first_ticket(engine: Engine, known: int | None) -> None:
    with engine.connect() as first:
        append(first, make_record(["a", "b"], expected=known))
        with beside(engine, lambda: create(engine, "b", "c")) as waiting:
            first.commit()
            assert waiting.result() == {"b": 2, "c": 1}
    with engine.connect() as connection:
        assert_whole(connection)


@pytest.mark.parametrize(("known", "second"), [(None, {"b": 3}), (1, "OP001")])
def test_two_meet_at_an_aggregate_without_a_ticket(
    engine: Engine, known: int | None, second: dict[str, int] | str
) -> None:
    create(engine, "b")
    with engine.connect() as first:
        append(first, make_record(["b"], expected=known))
        with beside(engine, lambda: try_append(engine, "b", known)) as waiting:
            first.commit()
            assert waiting.result() == second
    with engine.connect() as connection:
        assert_whole(connection)


@pytest.mark.parametrize("isolation", HIGHER)
@pytest.mark.parametrize("known", [None, 1])
def test_two_that_meet_there_do_not_serialise(
    engine: Engine, isolation: str, known: int | None
) -> None:
    create(engine, "b")
    with engine.connect().execution_options(isolation_level=isolation) as old:
        old.exec_driver_sql("SELECT 1 FROM oplog.oplog_ticket").all()
        append_apart(engine, ["b"], expected=known)
        with pytest.raises(DBAPIError) as refused:
            append(old, make_record(["b"], expected=known))
        assert sqlstate(refused) == "40001"
