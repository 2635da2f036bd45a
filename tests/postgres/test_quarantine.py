"""Records that nobody can read: every reader stops, and goes past once they are quarantined."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker

from oplog import Archive, Keyring, LoggedEntry, Oplog, context
from oplog.errors import (
    ChainBrokenError,
    ConfigurationError,
    DecodeError,
    KeyUnavailableError,
    OplogError,
    QuarantineWarning,
    ReplayError,
    SealError,
    WrongKeyError,
)
from oplog.schema.mark_names import QUARANTINE_AGGREGATE
from oplog.schema.tables import create_statements
from oplog.store.quarantined import write_metadata
from oplog.store.records import read_records
from tests.postgres.appending import state_append
from tests.postgres.archived import open_memory, restore_into
from tests.postgres.poison import AGGREGATES, ODD, UNREADABLE, Forger, spoil
from tests.postgres.replay_models import Account, Bench, add_account, dump_tables, make_bench
from tests.postgres.restored import dump_log, make_target

pytestmark = pytest.mark.postgres

REASON = "appended by nobody we know"


@dataclass
class Scene:
    """A log with a bad record in its middle, and archives that have it."""

    bench: Bench
    target: Bench
    archive: Archive
    archive_with_snapshot: Archive
    position: int = 0

    def add(self, id: int) -> None:
        """A good transaction."""

        def work(session: Any) -> None:
            session.get_one(Account, 1).opened = datetime(2026, 1, id, tzinfo=UTC)
            add_account(session, id)

        self.bench.write(work)

    def sync(self) -> int:
        """Publish what is new."""
        for archive in (self.archive, self.archive_with_snapshot):
            report = self.bench.log.sync(self.bench.engine, archive)
        return report.sequence

    def quarantine(self, *, lost_key: bool = False) -> None:
        """As the owner, who has the keys."""
        with self.bench.engine.connect() as connection:
            self.bench.log.quarantine(connection, self.position, reason=REASON, lost_key=lost_key)

    def connect(self) -> sa.Connection:
        return self.bench.engine.connect()


@pytest.fixture
def scene(engine: Engine, spare_engine: Engine) -> Scene:
    bench = make_bench(engine)
    made = Scene(bench, make_target(spare_engine, bench), open_memory(), open_memory())
    bench.write(lambda session: add_account(session, 1))
    made.sync()
    bench.log.snapshot(bench.engine, made.archive_with_snapshot)
    return made


def poison(scene: Scene, name: str) -> None:
    """Put a bad record into the log, and good ones after it, and publish all."""
    forge = {**UNREADABLE, **ODD}[name]
    scene.position = forge(Forger(scene.bench))
    scene.add(2)
    scene.sync()


# -- consumers: each says what it gives ----------------------------------------------------


def read(scene: Scene, *, archive: Archive | None = None, alone: bool = False) -> list[LoggedEntry]:
    with scene.connect() as connection:
        return list(scene.bench.log.read(None if alone else connection, archive=archive))


def check_read(scene: Scene, entries: list[LoggedEntry]) -> None:
    (bad,) = [entry for entry in entries if entry.position == scene.position]
    assert (bad.operations, bad.quarantined, bad.aggregate) == ((), REASON, AGGREGATES[0])
    assert all(entry.quarantined is None for entry in entries if entry is not bad)
    assert bad.to_json()["quarantined"] == REASON
    told = [entry.version for entry in entries if entry.aggregate == AGGREGATES[0]]
    assert told == [1, 2, 3]


def list_history(scene: Scene, *, archive: Archive | None = None) -> list[int]:
    with scene.connect() as connection:
        changes = scene.bench.log.history(connection, Account, 1, archive=archive)
    return [change.position for change in changes]


def check_history(scene: Scene, positions: list[int]) -> None:
    assert scene.position not in positions
    assert len(positions) == 2


def look_back(scene: Scene) -> dict[str, Any] | None:
    with scene.connect() as connection:
        return scene.bench.log.as_of(connection, Account, key=1, at=scene.bench.last_position())


def check_row(scene: Scene, row: dict[str, Any] | None) -> None:
    assert row is not None
    assert (row["balance"], row["opened"]) == (Decimal(10), datetime(2026, 1, 2, tzinfo=UTC))


def subscribe(scene: Scene) -> list[LoggedEntry]:
    found: list[LoggedEntry] = []
    for batch in scene.bench.log.subscribe(scene.bench.engine, name="consumer"):
        found += batch
        batch.commit()
    return found


def replay(scene: Scene) -> Any:
    with scene.connect() as connection:
        report = scene.bench.log.replay(connection)
        assert dump_tables(connection, "replayed") == dump_tables(connection)
        return report


def verify(scene: Scene) -> Any:
    with scene.connect() as connection:
        return scene.bench.log.verify(connection)


def verify_joined(scene: Scene) -> Any:
    with scene.connect() as connection:
        return scene.bench.log.verify(connection, archive=scene.archive)


def check_report(scene: Scene, report: Any) -> None:
    (listed,) = report.quarantined
    assert (listed.position, listed.reason, listed.aggregates) == (
        scene.position,
        REASON,
        AGGREGATES,
    )
    (document,) = report.to_json()["quarantined"]
    assert document["position"] == scene.position
    assert document["record_id"] == str(listed.record_id)
    assert getattr(report, "ok", True)


def take_snapshot(scene: Scene) -> Any:
    return scene.bench.log.snapshot(scene.bench.engine, scene.archive_with_snapshot)


def restore(scene: Scene) -> Any:
    report = restore_into(scene.target, scene.archive)
    check_equal(scene)
    return report


def restore_snapshot(scene: Scene) -> Any:
    report = restore_into(scene.target, scene.archive_with_snapshot)
    check_equal(scene)
    return report


def follow(scene: Scene) -> Any:
    engine = sa.create_engine(scene.target.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        report = scene.target.log.follow(scene.archive, connection)
    check_equal(scene)
    return report


def check_equal(scene: Scene) -> None:
    with scene.connect() as source, scene.target.engine.connect() as restored:
        assert dump_tables(restored) == dump_tables(source)
        assert dump_log(restored) == dump_log(source)


Consumer = tuple[Callable[[Scene], Any], Callable[[Scene, Any], None]]

READERS: Mapping[str, Consumer] = {
    "read": (read, check_read),
    "read an archive": (lambda s: read(s, archive=s.archive, alone=True), check_read),
    "read both": (lambda s: read(s, archive=s.archive), check_read),
    "history": (list_history, check_history),
    "history with an archive": (lambda s: list_history(s, archive=s.archive), check_history),
    "as_of": (look_back, check_row),
    "subscribe": (subscribe, check_read),
}
FOLDERS: Mapping[str, Consumer] = {
    "replay": (replay, check_report),
    "verify": (verify, check_report),
    "verify with an archive": (verify_joined, check_report),
    "restore": (restore, check_report),
    "restore from a snapshot": (restore_snapshot, check_report),
    "follow": (follow, check_report),
}
SNAPSHOT: Mapping[str, Consumer] = {"snapshot": (take_snapshot, lambda *_: None)}
CONSUMERS = {**READERS, **FOLDERS, **SNAPSHOT}


@pytest.mark.sampled(26)
@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_record_stops_a_reader_until_it_is_quarantined(
    scene: Scene, kind: str, consumer: str
) -> None:
    poison(scene, kind)
    consume, check = CONSUMERS[consumer]
    with pytest.raises(OplogError) as stopped:
        consume(scene)
    assert f"oplog quarantine {scene.position} --" in stopped.value.hint
    assert f"position {scene.position}" in " ".join(stopped.value.__notes__)
    scene.quarantine(lost_key=kind == "under a key that nobody has")
    scene.sync()
    with pytest.warns(QuarantineWarning, match=f"position {scene.position} .*{REASON}"):
        found = consume(scene)
    check(scene, found)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("consumer", [*READERS, *FOLDERS])
@pytest.mark.parametrize("kind", ODD)
def test_a_record_that_does_not_fit_stops_what_applies_it_until_it_is_quarantined(
    scene: Scene, kind: str, consumer: str
) -> None:
    poison(scene, kind)
    consume, check = CONSUMERS[consumer]
    if consumer in FOLDERS:
        with pytest.raises(ReplayError):
            consume(scene)
    elif kind == "a value that is none":
        with pytest.raises(DecodeError, match="not what its column holds") as stopped:
            consume(scene)
        assert f"oplog quarantine {scene.position} --" in stopped.value.hint
    scene.quarantine()
    scene.sync()
    with pytest.warns(QuarantineWarning):
        found = consume(scene)
    check(scene, found)


@pytest.mark.parametrize("kind", ["garbage", "a row that is there"])
def test_publishing_and_checking_need_no_quarantine(scene: Scene, kind: str) -> None:
    poison(scene, kind)
    bench = scene.bench
    with scene.connect() as connection:
        records = connection.exec_driver_sql("SELECT count(*) FROM oplog.oplog_record").scalar()
    assert scene.sync() == records
    report = bench.log.check(scene.archive, bench.engine)
    assert (report.problems, report.quarantined) == ((), ())
    scene.quarantine()
    scene.sync()
    for report in (bench.log.check(scene.archive), bench.log.check(scene.archive, bench.engine)):
        assert report.ok
        (listed,) = report.quarantined
        assert (listed.position, listed.reason) == (scene.position, REASON)
        assert report.to_json()["quarantined"][0]["aggregates"] == list(AGGREGATES)


def test_readers_go_past_what_was_quarantined_at_once(scene: Scene) -> None:
    """One warning for a reader, however often it meets the record."""
    poison(scene, "garbage")
    scene.quarantine()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verify(scene)
    (warning,) = caught
    assert warning.category is QuarantineWarning
    assert AGGREGATES[0] in str(warning.message)


# -- what is quarantined, and by whom ------------------------------------------------------


def test_a_good_record_is_not_quarantined(scene: Scene) -> None:
    poison(scene, "garbage")
    with scene.connect() as connection:
        good = [entry.position for entry in scene.bench.log.read(connection, through=1)]
        before = dump_log(connection)
        connection.rollback()
        for position in good:
            with pytest.raises(ConfigurationError, match="can be read, and fits"):
                scene.bench.log.quarantine(connection, position, reason=REASON)
        assert dump_log(connection) == before


def test_a_record_after_a_bad_one_is_not_quarantined_for_it(scene: Scene) -> None:
    poison(scene, "a row that is there")
    with scene.connect() as connection, pytest.raises(ReplayError) as error:
        scene.bench.log.quarantine(connection, scene.bench.last_position(), reason=REASON)
    assert f"position {scene.position} creates a row that is already there" in str(error.value)


def test_a_mark_is_not_quarantined_and_no_record_twice(scene: Scene) -> None:
    poison(scene, "garbage")
    scene.quarantine()
    mark = scene.bench.last_position()
    with scene.connect() as connection:
        (again,) = scene.bench.log.quarantine(connection, scene.position, reason="once more")
        assert (again.already, again.record.reason) == (True, REASON)
        assert again.record.marked_at_position == mark == scene.bench.last_position()
        with pytest.raises(ConfigurationError, match="is a mark of the database"):
            scene.bench.log.quarantine(connection, mark, reason=REASON)
        with pytest.raises(ConfigurationError, match="there is no record at position 999"):
            scene.bench.log.quarantine(connection, 999, reason=REASON)
        for reason in ("", "  ", "x" * 251, "a\0b"):
            with pytest.raises(ConfigurationError, match="for a reason"):
                scene.bench.log.quarantine(connection, scene.position, reason=reason)
        assert [one.position for one in scene.bench.log.list_quarantined(connection)] == [
            scene.position
        ]


def test_a_record_that_a_lacking_key_may_open_is_not_quarantined(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(scene, "garbage")
    bench = scene.bench
    other = Keyring.generate()
    text = other.to_text().replace(other.current_key_id, bench.log._log.sealer.key_id)
    monkeypatch.setenv("OTHER", text)
    others = {
        KeyUnavailableError: Keyring.generate(),
        WrongKeyError: Keyring.from_env("OTHER"),
    }
    for error, keyring in others.items():
        log = Oplog(bench.log.catalog, keyring=keyring)
        with scene.connect() as connection, pytest.raises(error) as refused:
            log.quarantine(connection, scene.position, reason=REASON)
        assert "is not quarantined: the key" in " ".join(refused.value.__notes__)
        # That nobody has a key has to be said, and of a wrong one it cannot be.
        assert ("--lost-key" in refused.value.hint) == (error is KeyUnavailableError)
        if error is WrongKeyError:
            with scene.connect() as connection, pytest.raises(error):
                log.quarantine(connection, scene.position, reason=REASON, lost_key=True)


def test_an_altered_record_is_not_quarantined(scene: Scene) -> None:
    poison(scene, "garbage")
    scene.bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"UPDATE oplog.oplog_record SET data = data || 'x' WHERE position = {scene.position}",
    )
    with scene.connect() as connection, pytest.raises(ChainBrokenError):
        scene.bench.log.quarantine(connection, scene.position, reason=REASON)


def test_plaintext_of_a_time_without_keys_is_not_quarantined(engine: Engine) -> None:
    catalog = make_bench(engine).log.catalog
    plain = Oplog(catalog, plaintext=True, schema="plain")
    with engine.begin() as connection:
        for statement in create_statements("plain"):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    sessions = sessionmaker(engine)
    plain.attach(sessions)
    with sessions.begin() as session:
        add_account(session, 5)
    plain.detach(sessions)
    sealed = Oplog(catalog, keyring=Keyring.generate(), schema="plain")
    with engine.connect() as connection:
        with pytest.raises(SealError):
            list(sealed.read(connection))
        connection.rollback()
        with pytest.raises(ConfigurationError, match="before the log had a key"):
            sealed.quarantine(connection, 1, reason=REASON)


def test_a_mark_says_who_wrote_it(scene: Scene) -> None:
    poison(scene, next(iter(UNREADABLE)))
    with context({"oplog.reason": "another", "oplog.role": "another"}.copy, actor="ann"):
        scene.quarantine()
    with pytest.warns(QuarantineWarning):
        mark = read(scene)[-1]
    assert mark.aggregate == QUARANTINE_AGGREGATE
    assert (mark.metadata["actor"], mark.metadata["oplog.reason"]) == (["ann"], [REASON])
    assert mark.metadata["oplog.role"] != ["another"]
    assert len(mark.metadata["oplog.role"]) == 1


def test_only_the_owner_quarantines(scene: Scene) -> None:
    poison(scene, "garbage")
    name = f"app_{uuid4().hex[:12]}"
    grants = scene.bench.log.grants("application", name).statements
    scene.bench.tamper(f"CREATE ROLE {name} LOGIN PASSWORD 'x'", *grants)
    try:
        url = scene.bench.engine.url.set(username=name, password="x")
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            with pytest.raises(ConfigurationError, match="only the owner"):
                scene.bench.log.quarantine(connection, scene.position, reason=REASON)
            connection.rollback()
            mark = {
                "p_aggregates": "ARRAY['oplog/quarantine']",
                "p_format": "3::smallint",
                "p_key_id": "''",
                "p_data": "''::bytea",
                "p_metadata": "ARRAY['quarantined', '1']",
            }
            with pytest.raises(DBAPIError, match="by the functions of the log only"):
                connection.exec_driver_sql(state_append(**mark))
    finally:
        scene.bench.tamper(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_what_is_no_mark_quarantines_nothing(scene: Scene) -> None:
    """Records of another kind at its aggregate; marks of another record, or of none."""
    poison(scene, "garbage")
    forger = Forger(scene.bench)
    with scene.connect() as connection:
        (stored,) = read_records(connection, "oplog", [scene.position])
        keys, values = write_metadata(stored, reason=REASON)
        flat = [text for pair in zip(keys, values, strict=True) for text in pair]
        connection.exec_driver_sql(
            "SELECT oplog.oplog_append_mark(gen_random_uuid(), ARRAY[%s], NULL, 'x'::bytea, NULL, "
            "NULL, 1::smallint, 'k', %s::text[], NULL, NULL, NULL, NULL, NULL, NULL, true)",
            (QUARANTINE_AGGREGATE, flat),
        )
        connection.commit()
    with pytest.raises(OplogError, match="altered"):
        look_back(scene)
    with scene.connect() as connection:
        for changed in ({2: "0" * 64}, {1: str(uuid4())}, {0: "x"}, {0: "1"}, {1: "-" * 36}):
            given = [changed.get(n, value) for n, value in enumerate(values)]
            connection.exec_driver_sql(
                "SELECT oplog.oplog_write_mark(%s, %s::text[], %s::text[])",
                (QUARANTINE_AGGREGATE, keys, given),
            )
        connection.commit()
    assert forger.bench is scene.bench
    with pytest.raises(OplogError, match="altered"):
        look_back(scene)


def test_an_altered_mark_is_an_altered_record(scene: Scene) -> None:
    poison(scene, "garbage")
    scene.quarantine()
    mark = scene.bench.last_position()
    scene.bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"UPDATE oplog.oplog_record SET metadata[2] = '1' WHERE position = {mark}",
    )
    with pytest.raises(ChainBrokenError, match=f"position {mark} "):
        look_back(scene)


def test_doctor_says_what_is_quarantined(scene: Scene) -> None:
    poison(scene, "garbage")

    def find() -> list[tuple[str, str]]:
        with scene.connect() as connection:
            found = scene.bench.log.diagnose(connection)
        return [(one.severity, one.message) for one in found if one.what == "quarantined"]

    assert find() == []
    scene.quarantine()
    ((severity, message),) = find()
    assert severity == "notice"
    assert message.startswith("1 record is quarantined")
    assert REASON in message


# -- what a quarantined record did ---------------------------------------------------------


def lose_content(scene: Scene) -> None:
    """The newest transaction's content is lost, and the owner says so."""
    scene.position = scene.bench.last_position()
    with scene.connect() as connection:
        spoil(connection, scene.position, data=b"\0" * 200)
        connection.commit()
    scene.quarantine()


def test_what_a_skipped_record_did_is_a_difference(scene: Scene) -> None:
    scene.add(2)
    lose_content(scene)
    with pytest.warns(QuarantineWarning):
        report = verify(scene)
    assert not report.ok
    told = [(one.kind, one.column, dict(one.key)) for one in report.differences]
    assert told == [("changed", "opened", {"id": 1}), ("extra", "", {"id": 2})]
    assert [one.position for one in report.quarantined] == [scene.position]


@pytest.mark.parametrize("consumer", ["replay", "verify", "restore", "follow"])
def test_an_effect_that_misses_a_skipped_one_names_it(scene: Scene, consumer: str) -> None:
    scene.add(2)
    lose_content(scene)
    scene.bench.write(lambda session: setattr(session.get_one(Account, 2), "balance", Decimal(5)))
    if consumer == "follow":
        scene.sync()
    scene.sync()
    consume, _ = CONSUMERS[consumer]
    with pytest.warns(QuarantineWarning), pytest.raises(ReplayError, match="not there") as error:
        consume(scene)
    notes = " ".join(error.value.__notes__)
    assert f"position {scene.position} (record " in notes
    assert REASON in notes
    assert "oplog adopt --again" in error.value.hint


def test_adopting_again_mends_what_a_skipped_record_did(scene: Scene) -> None:
    scene.add(2)
    lose_content(scene)
    scene.bench.write(lambda session: setattr(session.get_one(Account, 2), "balance", Decimal(5)))
    with scene.connect() as connection:
        scene.bench.log.adopt(connection, ["account"], again=True)
    scene.sync()
    for consumer in ("replay", "verify", "restore"):
        consume, _ = CONSUMERS[consumer]
        with pytest.warns(QuarantineWarning):
            report = consume(scene)
        assert [one.position for one in report.quarantined] == [scene.position]
        assert getattr(report, "ok", True)


def test_a_snapshot_over_a_skipped_record_has_its_rows(scene: Scene) -> None:
    """Which rows the record changed is not known: a layer of known rows would lack them."""
    scene.add(2)
    lose_content(scene)
    scene.sync()
    with pytest.warns(QuarantineWarning):
        assert take_snapshot(scene).taken
    restore_into(scene.target, scene.archive_with_snapshot)
    check_equal(scene)


def test_a_restore_of_a_time_before_the_mark_knows_the_mark(scene: Scene) -> None:
    poison(scene, "garbage")
    through = scene.bench.last_position()
    with scene.connect() as connection:
        then = dump_tables(connection)
    scene.add(3)
    scene.quarantine()
    scene.sync()
    with pytest.warns(QuarantineWarning):
        report = restore_into(scene.target, scene.archive, through=through)
    check_report(scene, report)
    with scene.target.engine.connect() as connection:
        assert dump_tables(connection) == then
        # The mark is of a later time: the owner says it again in the database that goes on.
        with pytest.raises(OplogError):
            scene.target.log.verify(connection)
        connection.rollback()
        scene.target.log.quarantine(connection, scene.position, reason=REASON)
        with pytest.warns(QuarantineWarning):
            assert scene.target.log.verify(connection).ok
