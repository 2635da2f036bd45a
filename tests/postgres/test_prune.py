"""What pruning removes, what it keeps, and all the reasons for which it refuses."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog import Archive, Outcome, Receipt
from oplog.archive.format.path import LOG
from oplog.errors import (
    ChainBrokenError,
    ConfigurationError,
    ConflictError,
    ForeignServerError,
    IdempotencyConflictError,
    LogForkedError,
    OplogError,
    PrunedError,
    SegmentCorruptError,
    SegmentMissingError,
)
from oplog.sync import head_draft
from oplog.upkeep.prune import PruneStep
from tests.postgres.archived import dump_all, dump_objects, open_memory, reopen, restore_into
from tests.postgres.keeping import read_row, write_row
from tests.postgres.pruned import (
    ask_everything,
    list_positions,
    open_plain,
    prune,
    prune_small,
    sync,
    write_random,
)
from tests.postgres.replay_models import Bench, Line, Task, make_bench, write_history
from tests.postgres.restored import dump_log, make_target

pytestmark = pytest.mark.postgres


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return make_bench(engine)


@pytest.fixture
def target(spare_engine: Engine, bench: Bench) -> Bench:
    return make_target(spare_engine, bench)


@pytest.fixture
def archive(bench: Bench) -> Archive:
    """Holds everything that there is."""
    write_history(bench)
    archive = open_memory()
    sync(bench, archive)
    return archive


def count_rows(bench: Bench, table: str) -> int:
    with open_plain(bench.engine).connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM oplog.{table}").scalar_one())


def count_entries(bench: Bench) -> int:
    with open_plain(bench.engine).connect() as connection:
        return sum(1 for _ in bench.log.read(connection))


def list_notices(bench: Bench) -> list[tuple[str, str]]:
    with open_plain(bench.engine).connect() as connection:
        found = bench.log.diagnose(connection)
    return [(f.severity, f.what) for f in found if f.what.startswith(("pruned", "log-"))]


def add_task(bench: Bench, number: int, *, key: str | None = None) -> list[Receipt]:
    with bench.sessions() as session:
        bench.log.annotate(session, idempotency_key=key, actor="somebody")
        session.add(Task(id=number, project="p", title=None))
        session.commit()
        return bench.log.receipts(session)


# -- what goes ----------------------------------------------------------------------------


def test_everything_archived_goes_and_the_rest_stays(bench: Bench, archive: Archive) -> None:
    before = list_positions(bench)
    add_task(bench, 900)
    report = prune(bench, archive)
    assert report.entries == len(before)
    assert (report.kept, report.total_entries) == (0, len(before))
    assert report.through_sequence == archive.read_head().sequence
    assert report.through_position == max(before)
    (left,) = list_positions(bench)
    assert left > max(before)
    for table in ("record", "token"):
        assert count_rows(bench, f"oplog_{table}") == 1, table
    assert count_rows(bench, "oplog_part") == 0
    assert count_rows(bench, "oplog_entry WHERE position > 0") == 1
    assert list_notices(bench) == [("notice", "pruned")]
    assert prune(bench, archive).entries == 0
    sync(bench, archive)
    assert prune(bench, archive).entries == 1
    assert list_positions(bench) == []
    with open_plain(bench.engine).connect() as connection:
        assert bench.log.store.list_broken_links(connection) == []


def test_a_dry_run_says_the_same_and_does_nothing(bench: Bench, archive: Archive) -> None:
    before = dump_all(bench)
    said = prune_small(bench, archive, dry_run=True)
    assert dump_all(bench) == before
    assert count_rows(bench, "oplog_pruned") == 0
    assert prune_small(bench, archive) == said
    assert said.entries > 0


def test_what_is_younger_stays(bench: Bench, archive: Archive) -> None:
    before = dump_all(bench)
    assert prune(bench, archive, keep=timedelta(hours=1)).entries == 0
    assert dump_all(bench) == before
    with pytest.raises(ConfigurationError, match="cannot be kept"):
        prune(bench, archive, keep=timedelta(seconds=-1))


def test_it_ends_before_the_first_that_is_younger(bench: Bench, archive: Archive) -> None:
    with open_plain(bench.engine).connect() as connection:
        entries = list(bench.log.read(connection, archive=reopen(archive)))
        now = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    middle = entries[len(entries) // 2]
    # The run is later than now: a little more is older than that by its clock.
    report = prune_small(bench, archive, keep=now - middle.recorded_at)
    assert 0 < report.through_sequence < len(entries) or report.entries == len(entries)
    older = [e for e in entries if e.recorded_at <= middle.recorded_at]
    assert report.entries >= len(older)
    assert list_positions(bench) == sorted(e.position for e in entries[report.entries :])


def test_records_of_several_parts_go_with_all_of_them(bench: Bench) -> None:
    archive = open_memory()
    titles = [random.Random(n).randbytes(30_000).hex() for n in range(10)]
    bench.write(
        lambda s: s.add_all(Task(id=n, project=f"{n}", title=t) for n, t in enumerate(titles))
    )
    add_task(bench, 900)
    sync(bench, archive)
    assert count_rows(bench, "oplog_part") > 0
    assert prune_small(bench, archive).total_entries == 11
    for table in ("record", "part", "token"):
        assert count_rows(bench, f"oplog_{table}") == 0, table
    with open_plain(bench.engine).connect() as connection:
        assert bench.log.verify(connection, archive=reopen(archive)).ok


def test_transactions_stay_whole(bench: Bench) -> None:
    archive = open_memory()
    for start in (0, 100, 200):
        tasks = [Task(id=n, project=f"project {n}") for n in range(start, start + 7)]
        bench.write(lambda session, tasks=tasks: session.add_all(tasks))  # type: ignore[misc]
    sync(bench, archive)
    seen = []

    def reach(step: PruneStep) -> None:
        if step is PruneStep.COMMITTED:
            seen.append(len(list_positions(bench)))

    prune_small(bench, archive, reach=reach)
    assert seen == [14, 7, 0]


# -- what is kept -------------------------------------------------------------------------


def test_used_keys_stay_used(bench: Bench) -> None:
    archive = open_memory()
    receipts = add_task(bench, 1, key="once")
    add_task(bench, 2)
    with bench.sessions() as session:
        bench.log.annotate(session, idempotency_key="two")
        session.add_all([Task(id=3, project="a"), Task(id=4, project="b")])
        session.commit()
        two = bench.log.receipts(session)
    sync(bench, archive)
    report = prune(bench, archive)
    assert (report.entries, report.kept) == (4, 3)
    assert list_positions(bench) == []
    plain = open_plain(bench.engine)
    assert bench.log.inquire("once", plain).receipts == tuple(receipts)
    assert bench.log.inquire("two", plain).receipts == tuple(two)
    assert bench.log.resolve("three", plain) is Outcome.ABORTED
    assert bench.log.resolve(two, plain) is Outcome.COMMITTED
    with bench.sessions() as session:
        assert bench.log.annotate(session, idempotency_key="two") == two
    with pytest.raises(IdempotencyConflictError):
        add_task(bench, 5, key="once")
    # Their metadata is not needed for that.
    kept = "oplog_outcome WHERE aggregates IS NOT NULL"
    assert count_rows(bench, kept) == 2
    assert count_rows(bench, f"{kept} AND metadata = '{{}}'") == 2
    with plain.connect() as connection:
        assert bench.log.store.list_broken_links(connection) == []
        assert bench.log.verify(connection, archive=reopen(archive)).ok


def test_an_old_snapshot_cannot_use_a_pruned_key_again(bench: Bench) -> None:
    archive = open_memory()
    bench.write(lambda s: s.add(Task(id=1, project="other", title=None)))
    with bench.sessions() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        session.get(Task, 1)
        add_task(bench, 2, key="once")
        sync(bench, archive)
        prune(bench, archive)
        assert bench.log.annotate(session, idempotency_key="once") == []
        session.add(Task(id=3, project="third", title=None))
        with pytest.raises((OplogError, sa.exc.DBAPIError)):
            session.commit()
    with open_plain(bench.engine).connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM task WHERE id = 3").scalar() == 0


def test_a_request_is_still_told_from_another(bench: Bench) -> None:
    archive = open_memory()
    with bench.sessions() as session:
        bench.log.annotate(session, idempotency_key="k", idempotency_request={"a": 1}, actor="x")
        session.add(Task(id=1, project="p"))
        session.commit()
    sync(bench, archive)
    prune(bench, archive)
    with bench.sessions() as session:
        assert bench.log.annotate(session, idempotency_key="k", idempotency_request={"a": 1})
    with bench.sessions() as session, pytest.raises(IdempotencyConflictError):
        bench.log.annotate(session, idempotency_key="k", idempotency_request={"a": 2})
    kept = "oplog_outcome WHERE metadata[1] = 'oplog.request' AND cardinality(metadata) = 2"
    assert count_rows(bench, kept) == 1


def test_outcomes_by_receipt_are_never_said_to_be_aborted(bench: Bench) -> None:
    archive = open_memory()
    (first,) = add_task(bench, 1)
    (second,) = add_task(bench, 2)
    (third,) = add_task(bench, 3)
    sync(bench, archive)
    prune(bench, archive)
    (fourth,) = add_task(bench, 4)
    assert first.aggregate == fourth.aggregate
    plain = open_plain(bench.engine)
    for receipt in (first, second, third, fourth, Receipt(first.entry_id, "unknown", 0, b"")):
        assert bench.log.resolve(receipt, plain) is Outcome.COMMITTED
    # None of these ids was used.
    assert bench.log.resolve(Receipt(uuid4(), "project/new", 0, b""), plain) is Outcome.ABORTED
    late = Receipt(uuid4(), first.aggregate, 5, b"")
    assert bench.log.resolve(late, plain) is Outcome.ABORTED
    assert count_rows(bench, "oplog_outcome WHERE position IS NULL") == 2


def test_an_adoption_stays_done(bench: Bench) -> None:
    bench.tamper("INSERT INTO task VALUES (1, 'p', 'before the log')")
    archive = open_memory()
    with open_plain(bench.engine).connect() as connection:
        assert bench.log.adopt(connection, ["task"]).types[0].rows == 1
    sync(bench, archive)
    report = prune(bench, archive)
    assert (report.entries, report.kept) == (1, 1)
    # What was saved besides can be lost.
    bench.tamper("DELETE FROM oplog.oplog_adoption")
    with open_plain(bench.engine).connect() as connection:
        bench.log.adopt(connection, ["task"])
        assert bench.log.verify(connection, archive=reopen(archive)).ok
    assert list_positions(bench) == []


# -- without the archive ------------------------------------------------------------------


def test_without_the_archive_nothing_is_silently_wrong(bench: Bench, archive: Archive) -> None:
    prune(bench, archive)
    add_task(bench, 900)
    log = bench.log
    with open_plain(bench.engine).connect() as connection:
        for ask in (
            lambda: log.replay(connection),
            lambda: log.verify(connection),
            lambda: log.history(connection, Task, 1),
            lambda: log.as_of(connection, Task, key=1, at=5),
        ):
            with pytest.raises(PrunedError, match="were pruned") as caught:
                ask()
            assert "--archive" in caught.value.hint
            connection.rollback()
        assert len(list(log.read(connection))) == 1


def test_a_hole_that_was_not_pruned_is_found(bench: Bench, archive: Archive) -> None:
    prune(bench, archive)
    for number in (900, 901, 902):
        add_task(bench, number)
    first = list_positions(bench)[0]
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"DELETE FROM oplog.oplog_record WHERE position = {first}",
        "ALTER TABLE oplog.oplog_record ENABLE ALWAYS TRIGGER oplog_append_only",
        "ALTER TABLE oplog.oplog_entry DISABLE TRIGGER ALL",
        f"DELETE FROM oplog.oplog_entry WHERE position = {first}",
        "ALTER TABLE oplog.oplog_entry ENABLE ALWAYS TRIGGER oplog_append_only",
    )
    with open_plain(bench.engine).connect() as connection:
        (link,) = bench.log.store.list_broken_links(connection)
        assert "1 more entries are missing than were pruned" in link.reason
        connection.rollback()
        with pytest.raises(ChainBrokenError):
            bench.log.verify(connection, archive=reopen(archive))


# -- refusals -----------------------------------------------------------------------------


def refuse(bench: Bench, archive: Archive, kind: type[OplogError], match: str) -> None:
    """Pruning raises, and leaves everything as it is."""
    before = dump_all(bench), count_rows(bench, "oplog_pruned")
    with pytest.raises(kind, match=match):
        prune_small(bench, archive)
    assert (dump_all(bench), count_rows(bench, "oplog_pruned")) == before


def test_what_is_not_archived_stays(bench: Bench, archive: Archive) -> None:
    known = archive.read_head().sequence
    add_task(bench, 900)
    assert prune(bench, archive).through_sequence == known
    assert len(list_positions(bench)) == 1


def test_a_flipped_byte(bench: Bench, archive: Archive) -> None:
    (path, *_) = sorted(p for p in dump_objects(archive) if p.startswith(LOG))
    data = bytearray(dump_objects(archive)[path])
    data[len(data) // 2] ^= 1
    archive.store.put(path, bytes(data))
    refuse(bench, archive, SegmentCorruptError, "SHA-256")


def test_a_missing_segment(bench: Bench, archive: Archive) -> None:
    (path, *_) = sorted(p for p in dump_objects(archive) if p.startswith(LOG))
    archive.store.delete(path)
    refuse(bench, archive, SegmentMissingError, "missing")


def test_a_row_that_is_another(bench: Bench, archive: Archive) -> None:
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        "UPDATE oplog.oplog_record SET record_hash = sha256(data) WHERE position = 1",
        "ALTER TABLE oplog.oplog_record ENABLE ALWAYS TRIGGER oplog_append_only",
    )
    refuse(bench, archive, ChainBrokenError, "is another one than")


def test_a_row_that_is_gone(bench: Bench, archive: Archive) -> None:
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        "DELETE FROM oplog.oplog_record WHERE position = 2",
        "ALTER TABLE oplog.oplog_record ENABLE ALWAYS TRIGGER oplog_append_only",
    )
    refuse(bench, archive, ChainBrokenError, "is not in the database")


@pytest.mark.parametrize("change", ["data = 'x'", "metadata[2] = 'x'", "idempotency_key = 'x'"])
def test_what_was_archived_altered(
    bench: Bench, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker refuses to publish it; an archive may have it all the same.
    monkeypatch.setattr(head_draft, "check_publishable", lambda _: None)
    add_task(bench, 1)
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"UPDATE oplog.oplog_record SET {change}",
        "ALTER TABLE oplog.oplog_record ENABLE ALWAYS TRIGGER oplog_append_only",
    )
    archive = open_memory()
    sync(bench, archive)
    refuse(bench, archive, ChainBrokenError, "does not match its hash")


def test_a_consumer_that_has_not_seen_it(bench: Bench, archive: Archive) -> None:
    positions = list_positions(bench)
    consumer = bench.log.subscribe(open_plain(bench.engine), name="mail", max_entries=5)
    batch = next(iter(consumer))
    batch.commit()
    with pytest.raises(ConflictError, match="'mail'"):
        prune_small(bench, archive)
    # What all have seen is gone by then.
    left, total = count_entries(bench), len(positions)
    assert total - len(batch) <= left < total
    rest = []
    for more in consumer:
        rest += [entry.position for entry in more]
        more.commit()
    assert sorted([*(e.position for e in batch), *rest]) == sorted(positions)
    assert prune_small(bench, archive).total_entries == total


def test_a_consumer_that_is_given_up(bench: Bench, archive: Archive) -> None:
    total = count_entries(bench)
    consumer = bench.log.subscribe(open_plain(bench.engine), name="mail", max_entries=5)
    next(iter(consumer)).commit()
    with pytest.raises(ConflictError):
        prune(bench, archive, force=["other"])
    assert prune(bench, archive, force=["mail"]).entries == total
    assert list(consumer) == []


def test_another_archive_that_has_not_got_it(bench: Bench) -> None:
    one, two = open_memory(), open_memory()
    add_task(bench, 1)
    sync(bench, two)
    add_task(bench, 2)
    sync(bench, one)
    with pytest.raises(ConflictError, match="archive/"):
        prune_small(bench, one)
    sync(bench, two)
    assert prune_small(bench, one).total_entries == 2
    with pytest.raises(PrunedError):
        prune(bench, two)
    # It was in step, and goes on.
    add_task(bench, 3)
    sync(bench, two)
    assert two.read_head().sequence == 3
    with open_plain(bench.engine).connect() as connection, pytest.raises(PrunedError):
        bench.log.verify(connection, archive=reopen(two))


def test_a_new_archive_of_a_pruned_log(bench: Bench, archive: Archive) -> None:
    prune(bench, archive)
    add_task(bench, 900)
    new = open_memory()
    with pytest.raises(PrunedError, match="does not have them in that place"):
        sync(bench, new)
    assert dump_objects(new) == {}


def test_an_archive_of_something_else(bench: Bench, archive: Archive, target: Bench) -> None:
    target.write(lambda s: s.add(Task(id=1, project="p")))
    other = open_memory()
    sync(target, other)
    refuse(bench, other, ConfigurationError, "was not published to")
    with (
        open_plain(bench.engine).connect() as connection,
        pytest.raises(ConfigurationError, match="was not published to"),
    ):
        bench.log.verify(connection, archive=reopen(other))


def test_an_archive_that_went_on_elsewhere(bench: Bench, target: Bench) -> None:
    archive = open_memory()
    add_task(bench, 1)
    sync(bench, archive)
    middle = reopen(archive).read_head().position
    add_task(bench, 2)
    sync(bench, archive)
    restore_into(target, reopen(archive), through=middle)
    target.write(lambda s: s.add(Task(id=9, project="elsewhere")))
    sync(target, archive, fork="fork")
    refuse(bench, archive, ForeignServerError, "belongs to database")
    with open_plain(bench.engine).connect() as connection, pytest.raises(LogForkedError):
        bench.log.verify(connection, archive=reopen(archive))


@pytest.fixture
def application(engine: Engine) -> Iterator[sa.URL]:
    """An account with all rights on rows, and none on tables."""
    name, password = f"app_{uuid4().hex[:8]}", uuid4().hex
    plain = open_plain(engine)
    with plain.begin() as connection:
        for statement in (
            f"CREATE ROLE {name} LOGIN PASSWORD '{password}'",
            f"GRANT USAGE ON SCHEMA oplog, public TO {name}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA oplog, public TO {name}",
        ):
            connection.exec_driver_sql(statement)
    yield engine.url.set(username=name, password=password)
    with plain.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name}")
        connection.exec_driver_sql(f"DROP ROLE {name}")


_DECLARE = (
    "INSERT INTO oplog.oplog_pruned (number, archive_id, url, generation, sequence, chain, "
    "position, entries) VALUES (%s, gen_random_uuid(), 'x', 0, 1, sha256(''), 1, 1)"
)


def test_the_application_may_not(bench: Bench, archive: Archive, application: sa.URL) -> None:
    engine = sa.create_engine(application, poolclass=sa.NullPool)
    with pytest.raises(ConfigurationError, match="only the owner"):
        bench.log.prune(engine, reopen(archive), keep=timedelta(0))
    with engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.exec_driver_sql(_DECLARE, (1,))
        connection.rollback()
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.exec_driver_sql("DELETE FROM oplog.oplog_record")


def test_only_what_is_declared_in_the_same_transaction(bench: Bench, archive: Archive) -> None:
    prune(bench, archive)
    add_task(bench, 900)
    engine = open_plain(bench.engine)
    partitions = [f"{table}_p0" for table in ("record", "part", "token")]
    for table in ("record", "part", "token", "entry", *partitions):
        with (
            engine.connect() as connection,
            pytest.raises(sa.exc.DBAPIError, match="append-only"),
        ):
            connection.exec_driver_sql(f"DELETE FROM oplog.oplog_{table}")
    for statement in (
        "UPDATE oplog.oplog_record SET position = position",
        "UPDATE oplog.oplog_record_p0 SET position = position",
        "TRUNCATE oplog.oplog_record",
        "TRUNCATE oplog.oplog_record_p0",
        "UPDATE oplog.oplog_part SET number = number",
        "TRUNCATE oplog.oplog_part",
        "UPDATE oplog.oplog_token SET token = token",
        "TRUNCATE oplog.oplog_token",
        "TRUNCATE oplog.oplog_entry",
        "DELETE FROM oplog.oplog_ticket",
        "DELETE FROM oplog.oplog_outcome",
        "TRUNCATE oplog.oplog_outcome",
        "DELETE FROM oplog.oplog_type",
        "DELETE FROM oplog.oplog_key",
        "DELETE FROM oplog.oplog_log",
        "DELETE FROM oplog.oplog_pruned",
        "UPDATE oplog.oplog_pruned SET number = number",
        "TRUNCATE oplog.oplog_pruned",
    ):
        with engine.connect() as connection:
            connection.exec_driver_sql(_DECLARE, (99,))
            with pytest.raises(sa.exc.DBAPIError, match="append-only"):
                connection.exec_driver_sql(statement)
    with engine.connect() as connection:
        # In a copy of the log the id of a transaction that pruned comes again.
        connection.exec_driver_sql("ALTER TABLE oplog.oplog_pruned DISABLE TRIGGER ALL")
        connection.exec_driver_sql(
            "UPDATE oplog.oplog_pruned SET transaction_id = '5000000000'::xid8"
        )
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.exec_driver_sql("DELETE FROM oplog.oplog_record")


# -- afterwards ---------------------------------------------------------------------------


def test_a_pruned_database_is_restored_from_its_archive(
    bench: Bench, archive: Archive, target: Bench
) -> None:
    before = dump_all(bench)
    prune(bench, archive)
    restore_into(target, reopen(archive))
    assert dump_all(target) == before
    target.write(lambda s: s.add(Task(id=900, project="p")))
    sync(target, archive)
    prune_small(target, archive)
    assert list_positions(target) == []
    with open_plain(target.engine).connect() as connection:
        assert target.log.verify(connection, archive=reopen(archive)).ok


def test_a_lost_receipt_is_no_fork(bench: Bench, archive: Archive) -> None:
    row = read_row(bench)
    add_task(bench, 900, key="k")
    prune(bench, archive)
    sync(bench, archive)
    # Published up to the seam, as far as the database knows; then nothing at all.
    for saved in (row, None):
        if saved is None:
            bench.tamper("DELETE FROM oplog.oplog_archive")
        else:
            write_row(bench, saved)
        head = archive.read_head()
        sync(bench, archive)
        assert reopen(archive).read_head() == head
    add_task(bench, 901)
    prune(bench, archive)
    bench.tamper("DELETE FROM oplog.oplog_archive")
    sync(bench, archive)
    assert archive.read_head().sequence == head.sequence + 1
    assert archive.read_head().generation == 0
    with open_plain(bench.engine).connect() as connection:
        assert bench.log.verify(connection, archive=reopen(archive)).ok


def test_an_interrupted_run_is_run_again(bench: Bench, archive: Archive) -> None:
    before, entries = ask_everything(bench, []), count_entries(bench)

    class _StopError(Exception):
        pass

    for step in PruneStep:

        def reach(reached: PruneStep, step: PruneStep = step) -> None:
            if reached is step:
                raise _StopError

        with pytest.raises(_StopError):
            prune_small(bench, archive, reach=reach)
        assert ask_everything(bench, [], archive=reopen(archive)) == before
    total = prune_small(bench, archive)
    assert total.entries < total.total_entries == entries
    assert ask_everything(bench, [], archive=reopen(archive)) == before


def test_one_at_a_time(bench: Bench, archive: Archive) -> None:
    def reach(step: PruneStep) -> None:
        if step is PruneStep.REMOVED:
            with pytest.raises(ConflictError, match="another process is pruning"):
                prune_small(bench, archive)

    total = count_entries(bench)
    assert prune_small(bench, archive, reach=reach).entries == total


def test_beside_writers_and_a_publisher(bench: Bench) -> None:
    archive = open_memory()
    stop = threading.Event()
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(25):
                with bench.sessions.begin() as session:
                    session.add(Task(id=number * 1000 + turn, project=f"{number}", title=None))
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    total = 0
    while any(thread.is_alive() for thread in threads) or not stop.is_set():
        if not any(thread.is_alive() for thread in threads):
            stop.set()
        sync(bench, archive)
        if archive.find_head() is not None:
            total = prune_small(bench, archive, batch_entries=10).total_entries
            with open_plain(bench.engine).connect() as connection:
                assert bench.log.verify(connection, archive=reopen(archive)).ok
    for thread in threads:
        thread.join()
    assert errors == []
    assert total == 75
    assert list_positions(bench) == []


def test_a_page_pruned_while_it_is_read(bench: Bench) -> None:
    archive = open_memory()
    write_random(bench, random.Random(7), 3)
    sync(bench, archive)
    write_random(bench, random.Random(8), 3)
    with bench.engine.connect() as connection:
        written = [entry.entry_id for entry in bench.log.read(connection)]
    with open_plain(bench.engine).connect() as connection:
        reading = bench.log.read(connection, archive=reopen(archive))
        first = next(reading)
        sync(bench, archive)
        prune(bench, archive)
        assert [entry.entry_id for entry in (first, *reading)] == written
    engine = open_plain(bench.engine).execution_options(isolation_level="REPEATABLE READ")
    write_random(bench, random.Random(9), 3)
    with engine.connect() as connection:
        reading = bench.log.read(connection, archive=reopen(archive))
        first = next(reading)
        sync(bench, archive)
        prune(bench, archive)
        positions = {entry.position for entry in (first, *reading)}
    assert len(positions) == archive.read_head().sequence


def test_a_pruned_database_and_its_archive_agree(bench: Bench) -> None:
    archive = open_memory()
    for number in range(6):
        add_task(bench, number, key=f"key {number}")
    sync(bench, archive)
    prune(bench, archive)
    add_task(bench, 900)
    sync(bench, archive)
    plain = open_plain(bench.engine)
    assert bench.log.check(reopen(archive), plain).problems == ()
    # What stayed of them is not what the archive had: nothing may be made of it.
    (path, *_) = sorted(p for p in dump_objects(archive) if p.startswith(LOG))
    data = bytearray(dump_objects(archive)[path])
    data[len(data) // 2] ^= 1
    archive.store.put(path, bytes(data))
    report = bench.log.resync(plain, reopen(archive))
    assert (report.ok, report.repaired) == (False, ())
    assert dump_objects(archive)[path] == bytes(data)


def test_heads_stay_and_are_continued(bench: Bench, archive: Archive) -> None:
    with open_plain(bench.engine).connect() as connection:
        before = dump_log(connection)["head"]
        connection.rollback()
        prune(bench, archive)
        assert dump_log(connection)["head"] == before
        connection.rollback()
        newest = {name: version for name, version, _ in before}
        (receipt,) = add_task(bench, 900)
        assert receipt.version == newest[receipt.aggregate] + 1
        assert bench.log.verify(connection, archive=reopen(archive)).ok


def test_an_aggregate_of_earlier_versions_keeps_the_newest(bench: Bench) -> None:
    """Whose records go in several batches, and some of which are left."""
    archive = open_memory()
    for number in range(1, 8):
        add_task(bench, number)
    sync(bench, archive)
    (left,) = add_task(bench, 8)
    prune_small(bench, archive)
    (after,) = add_task(bench, 9)
    assert (left.version, after.version) == (8, 9)
    sync(bench, archive)
    prune_small(bench, archive)
    with open_plain(bench.engine).connect() as connection:
        (head,) = dump_log(connection)["head"]
        assert head[:2] == (after.aggregate, 9)
        assert bytes(head[2]) == after.entry_hash
        assert bench.log.verify(connection, archive=reopen(archive)).ok


def test_a_row_is_created_again_after_its_history_was_pruned(bench: Bench) -> None:
    archive = open_memory()
    work = [
        lambda s: s.add(Line(order_id=7, number="a")),
        lambda s: s.delete(s.get(Line, (7, "a"))),
    ]
    for one in work:
        bench.write(one)
    sync(bench, archive)
    prune(bench, archive)
    bench.write(work[0])
    with open_plain(bench.engine).connect() as connection:
        (entry,) = bench.log.read(connection)
        assert entry.version == 3
        connection.rollback()
        assert bench.log.verify(connection, archive=reopen(archive)).ok
