"""Verification that creates nothing, as on a standby: the same verdict as with temporary tables.

It runs on a primary just as well, where both can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from oplog.errors import ConfigurationError, ReplayError
from oplog.replay import VerifyReport, hash_buckets, verification
from tests.concurrency.workload import Customer, add_customer
from tests.postgres.replay_models import Account, Bench, Line, Owner, Task, make_bench
from tests.postgres.test_standby import Followed, db, servers  # noqa: F401 - fixtures

pytestmark = pytest.mark.postgres

ROWS = 40


@pytest.fixture
def bench(engine: Engine) -> Bench:
    found = make_bench(engine)
    with found.sessions.begin() as session:
        session.add(Owner(name="ann", motto=""))
        session.flush()
        session.add_all(
            [Account(id=n, owner_id=1, balance=Decimal(f"{n}.50")) for n in range(1, ROWS + 1)]
        )
        session.add(Line(order_id=1, number="a", weight=0.0, paid=None, blob=b"x"))
        session.add_all([Task(id=n, project=f"p{n}", title=None) for n in (1, 2)])
    with found.sessions.begin() as session:
        session.delete(session.get_one(Account, 2))
        for number in range(31, ROWS + 1):
            session.get_one(Account, number).balance = Decimal(0)
    return found


@pytest.fixture(params=["whole", "estimated", "tried"])
def portions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """Begin to verify without tables: at once, in portions by size, or found by trying."""
    runs: list[int] = []
    run = hash_buckets._Work.run

    def note(work: hash_buckets._Work, count: int) -> object:
        runs.append(count)
        return run(work, count)

    def begin() -> None:
        monkeypatch.setattr(hash_buckets._Work, "run", note)
        compare: Any = hash_buckets.compare_in_buckets
        if request.param == "estimated":
            monkeypatch.setattr(hash_buckets, "BUCKET_BYTES", 16384)
        elif request.param == "tried":
            compare = compare_few_rows
        monkeypatch.setattr(verification, "_compare_in_tables", compare)

    yield begin
    expected = {"whole": runs == [1], "estimated": runs[0] > 2, "tried": len(runs) > 1}
    assert expected[request.param], runs


def compare_few_rows(reader: Any, plans: Any, **options: Any) -> object:
    return hash_buckets.compare_in_buckets(reader, plans, **{**options, "batch_rows": 5})


def verify(bench: Bench) -> VerifyReport:
    with bench.engine.connect() as connection:
        return bench.log.verify(connection)


@pytest.mark.parametrize("tampered", [False, True], ids=["untouched", "tampered"])
def test_the_same_verdict_as_with_tables(
    bench: Bench, tampered: bool, portions: Callable[[], None]
) -> None:
    if tampered:
        bench.tamper(
            "UPDATE owner SET motto = NULL",
            "UPDATE account SET balance = 77 WHERE id IN (3, 33)",
            "UPDATE line SET weight = '-0'",
            "DELETE FROM account WHERE id IN (5, 35)",
            "INSERT INTO account (id, owner_id, balance) VALUES (999, 1, 5)",
        )
    expected = verify(bench)
    # Two accounts differ in two columns each: one of them is computed.
    assert expected.count == (9 if tampered else 0)
    portions()
    found = verify(bench)
    assert replace(found, differences=[]) == replace(expected, differences=[])
    assert sorted(map(repr, found.differences)) == sorted(map(repr, expected.differences))


def test_differences_beyond_the_limit_are_counted(
    bench: Bench, portions: Callable[[], None]
) -> None:
    portions()
    bench.tamper("UPDATE account SET balance = 7")
    with bench.engine.connect() as connection:
        report = bench.log.verify(connection, limit=3)
    assert len(report.differences) == 3
    assert report.count == (ROWS - 1) * 2


def test_a_log_that_does_not_replay_is_an_error(bench: Bench, portions: Callable[[], None]) -> None:
    """What creates a row is lost; the update after it meets nothing."""
    portions()
    shape = bench.log.catalog.find_types(Account)[0].type_name
    fold = hash_buckets._BucketFold.create

    def lose(self: hash_buckets._BucketFold, key: tuple[object, ...], row: object) -> None:
        if not (shape in self.plan.types and key == (33,)):
            fold(self, key, row)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hash_buckets._BucketFold, "create", lose)
        with pytest.raises(ReplayError, match=r"updates a row that is not there: .*id=33"):
            verify(bench)


def test_tables_that_cannot_be_split_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_buckets, "_find_hashed_column", lambda _: None)
    monkeypatch.setattr(verification, "_compare_in_tables", compare_few_rows)
    with pytest.raises(ConfigurationError, match="too large to be verified on a standby") as caught:
        verify(bench)
    assert "primary" in caught.value.hint


def test_progress_only_grows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_buckets, "BUCKET_BYTES", 16384)
    monkeypatch.setattr(verification, "_compare_in_tables", hash_buckets.compare_in_buckets)
    told: list[tuple[int, int]] = []
    with bench.engine.connect() as connection:
        bench.log.verify(connection, progress=lambda done, last: told.append((done, last)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 0


def test_on_a_standby(db: Followed) -> None:  # noqa: F811 - the fixture
    for number in range(1, 6):
        add_customer(db.sessions, number)
    db.catch_up()
    with db.standby.connect() as connection:
        assert db.log.verify(connection).ok
    db.tamper("UPDATE customer SET name = 'tampered' WHERE id = 3")
    db.catch_up()
    with db.standby.connect() as connection:
        report = db.log.verify(connection)
        # Inside the caller's transaction, which shows each statement anew, as well.
        connection.execute(sa.select(Customer)).all()
        assert db.log.verify(connection) == report
    (difference,) = report.differences
    assert (difference.key, difference.live) == ({"id": 3}, "tampered")
    db.tamper("UPDATE customer SET name = 'customer 3' WHERE id = 3")
