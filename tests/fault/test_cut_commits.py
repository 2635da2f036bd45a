"""The connection is cut after every single byte of the dialogue that carries COMMIT.

What the application is told must be true: an error that says nothing happened, a success, or
an unknown outcome that resolves to what the tables hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker

from oplog import Oplog, Outcome
from oplog.errors import CommitOutcomeUnknownError
from oplog.schema.tables import create_statements
from tests.concurrency.workload import Customer, Invoice, make_log
from tests.fault.lost_commits import (
    Bench,
    Work,
    check_pool,
    commit,
    commit_async,
    name,
    open_bench,
    write_both,
    write_known,
    write_new,
)
from tests.fault.proxy import Fault, measure_request
from tests.sampling import Sample

pytestmark = [pytest.mark.postgres, pytest.mark.fault]

SAMPLE = 10
"""Offsets drawn of a dialogue, and of each part of one that is tried in parts."""
LAST = 14
"""Those behind the last byte but so many are always tried: COMMIT or its answer is there."""
FIRST, WHOLE = 100_000, 200_000
"""Numbers of the transactions that are cut, and of the one that is measured."""
PARTS = 3
"""Of what is tried byte by byte: the run's processes share it."""
CUTS = [Fault.CUT_REQUEST, Fault.CUT_ANSWER]
# SQLAlchemy asks each new connection for a type that no test has.
QUICK = {"use_native_hstore": False}


@pytest.fixture
def bench(database_url: URL) -> Iterator[Bench]:
    with open_bench(database_url) as bench:
        yield bench


def judge(bench: Bench, number: int, told: BaseException | None, *, work: Work = write_both) -> str:
    """What was told, in a word; it was the truth."""
    dialogue = bench.struck
    if isinstance(told, CommitOutcomeUnknownError):
        written: dict[Work, list[str]] = {
            write_known: ["customer/1"],
            write_new: [f"invoice/{number}"],
        }
        expected = written.get(work, ["customer/1", f"invoice/{number}"])
        # With two logs there are receipts of both, and each is asked about its own.
        mine = told.receipts[-1].record_id
        told.receipts = [receipt for receipt in told.receipts if receipt.record_id == mine]
        assert [receipt.aggregate for receipt in told.receipts] == expected
        outcome = bench.resolve(told)
    elif told is None:
        outcome = Outcome.COMMITTED
    else:
        assert isinstance(told, DBAPIError), repr(told)
        outcome = Outcome.ABORTED
    dialogue.wait_ended()
    where = f"{dialogue.fault} at {dialogue.offset}: told {told!r}, which means {outcome}"
    assert outcome is not Outcome.PENDING, where
    assert bench.happened(number, work=work) == (outcome is Outcome.COMMITTED), where
    certain = "" if isinstance(told, CommitOutcomeUnknownError) else "certainly "
    return f"{certain}{outcome.value}"


def draw_offsets(sample: Sample, length: int) -> list[int]:
    """Some offsets of a dialogue, the last ones among them; all of them in a whole run."""
    edge = max(0, length - LAST)
    return sorted({0, *sample(range(edge), SAMPLE), *range(edge, length)})


def cut_each(
    bench: Bench,
    cut: Fault,
    offsets: Iterable[int],
    attempt: Callable[[int], None],
    *,
    work: Work = write_both,
) -> Counter[str]:
    """What was told, counted, when the dialogue of each transaction was cut there."""
    seen: Counter[str] = Counter()
    for offset in offsets:
        number = FIRST + offset
        bench.plan(cut, offset=offset, reset=bool(offset % 2))
        told: BaseException | None = None
        try:
            attempt(number)
        except (CommitOutcomeUnknownError, DBAPIError) as error:
            told = error
        if told is None:
            # The dialogue was not longer than this: it went through.
            bench.proxy.disarm()
            assert bench.happened(number, work=work)
            break
        seen[judge(bench, number, told, work=work)] += 1
    return seen


def measure(bench: Bench, attempt: Callable[[int], None], cut: Fault) -> int:
    """How many offsets the dialogue has in the direction that is cut."""
    bench.plan(Fault.NONE)
    attempt(WHOLE)
    return count_offsets(bench, cut)


def count_offsets(bench: Bench, cut: Fault) -> int:
    """Of a whole request nothing is known; a whole answer is a success."""
    if cut is Fault.CUT_REQUEST:
        return measure_request(bench.struck.request) + 1
    return len(bench.struck.answer)


# -- append and COMMIT in one request ---------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("part", range(PARTS))
def test_a_pipelined_request_cut_after_every_byte(bench: Bench, part: int, sample: Sample) -> None:
    """Of an aggregate that was never written: there is no ticket to wait for."""

    def attempt(number: int) -> None:
        commit(sessions, number, work=write_new)

    with bench.open_sessions(**QUICK) as sessions:
        every = range(measure(bench, attempt, Fault.CUT_REQUEST))
        part_of = every[part * len(every) // PARTS : (part + 1) * len(every) // PARTS]
        mine = [*sample(part_of[:-LAST], SAMPLE), *part_of[-LAST:]]
        seen = cut_each(bench, Fault.CUT_REQUEST, mine, attempt, work=write_new)
    # The server commits when COMMIT has come whole; the Sync behind it, 5 bytes, may be missing.
    committed = 6 if part == PARTS - 1 else 0
    assert seen == Counter(committed=committed, aborted=len(mine) - committed)
    bench.assert_whole()


@pytest.mark.sampled
def test_a_pipelined_answer_cut_after_every_byte(bench: Bench, sample: Sample) -> None:
    """Of an aggregate that is there."""

    def attempt(number: int) -> None:
        commit(sessions, number, work=write_known)

    # The last of them is no error, and leaves a dead connection in the pool.
    with bench.open_sessions(**QUICK, pool_pre_ping=True) as sessions:
        length = measure(bench, attempt, Fault.CUT_ANSWER)
        # Versions get longer with each that is committed.
        offsets = [*sample(range(length - LAST), SAMPLE), *range(length - LAST, length + 9)]
        seen = cut_each(bench, Fault.CUT_ANSWER, offsets, attempt, work=write_known)
    assert seen["committed"] == seen.total() >= len(offsets) - 9
    bench.assert_whole()


@pytest.mark.sampled
@pytest.mark.parametrize("cut", CUTS)
def test_in_autocommit(bench: Bench, cut: Fault, sample: Sample) -> None:
    """The statement's own transaction commits as any other does."""

    def attempt(number: int) -> None:
        commit(sessions, number, work=write_new)

    options = {**QUICK, "isolation_level": "AUTOCOMMIT", "pool_pre_ping": True}
    with bench.open_sessions(**options) as sessions:
        offsets = draw_offsets(sample, measure(bench, attempt, cut))
        seen = cut_each(bench, cut, offsets, attempt, work=write_new)
    if cut is Fault.CUT_ANSWER:
        assert seen["committed"] == seen.total()
    else:
        assert seen["aborted"]
    bench.assert_whole()


# -- append and COMMIT in two requests --------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
def test_an_attached_engine(bench: Bench, cut: Fault, sample: Sample) -> None:
    """COMMIT travels with the append."""
    with engine_attached(bench) as attempt:
        offsets = draw_offsets(sample, measure(bench, attempt, cut))
        seen = cut_each(bench, cut, offsets, attempt)
    assert seen
    assert seen.keys() <= {"committed", "aborted"}
    bench.assert_whole()


@contextmanager
def engine_attached(bench: Bench) -> Iterator[Callable[[int], None]]:
    """Transactions of an engine's own connections."""
    engine = create_engine(bench.proxy.url, **QUICK)
    bench.log.attach(engine)

    def attempt(number: int) -> None:
        with engine.begin() as connection:
            renamed = sa.update(Customer).where(Customer.id == 1).values(name=name(number))
            connection.execute(renamed)
            connection.execute(sa.insert(Invoice).values(id=number, customer_id=1, amount=number))

    yield attempt
    check_pool(engine)
    engine.dispose()


@contextmanager
def followed(bench: Bench) -> Iterator[Callable[[int], None]]:
    """A session on an engine with a listener after the log's, which might write rows."""
    with bench.open_sessions(**QUICK) as sessions:
        with sessions() as session:
            session.connection()
        event.listen(sessions.kw["bind"], "commit", lambda connection: None)
        yield lambda number: commit(sessions, number)


@contextmanager
def two_logs(bench: Bench) -> Iterator[Callable[[int], None]]:
    """A session that another log listens to as well: COMMIT waits for both."""
    with bench.engine.begin() as connection:
        for statement in create_statements(schema="second"):
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    second: Oplog = make_log(schema="second")
    engine = create_engine(bench.proxy.url, **QUICK)
    sessions = sessionmaker(engine)
    # The first that listens appends first, so the faults strike between its record and COMMIT.
    for log in (second, bench.log):
        log.attach(sessions)
    yield lambda number: commit(sessions, number)
    check_pool(engine)
    engine.dispose()
    for log in (second, bench.log):
        log.detach(sessions)


@pytest.mark.sampled
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
@pytest.mark.parametrize("way", [followed, two_logs])
def test_a_dialogue_in_two_requests_cut_anywhere(
    bench: Bench, way: Any, cut: Fault, sample: Sample
) -> None:
    with way(bench) as attempt:
        offsets = draw_offsets(sample, measure(bench, attempt, cut))
        seen = cut_each(bench, cut, offsets, attempt)
    check_sample(seen)
    bench.assert_whole()


@pytest.mark.sampled
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
@pytest.mark.parametrize("apart", [False, True], ids=["in one request", "in two"])
async def test_an_async_dialogue_cut_anywhere(
    bench: Bench, cut: Fault, sample: Sample, *, apart: bool
) -> None:
    async with bench.open_async_sessions(**QUICK, apart=apart) as sessions:
        bench.plan(Fault.NONE)
        await commit_async(sessions, WHOLE)
        seen: Counter[str] = Counter()
        for offset in draw_offsets(sample, count_offsets(bench, cut)):
            number = FIRST + offset
            bench.plan(cut, offset=offset, reset=bool(offset % 2))
            with pytest.raises((CommitOutcomeUnknownError, DBAPIError)) as caught:
                await commit_async(sessions, number)
            seen[judge(bench, number, caught.value)] += 1
    if apart:
        check_sample(seen)
    else:
        assert seen.keys() <= {"committed", "aborted"}
    bench.assert_whole()


def check_sample(seen: Counter[str]) -> None:
    """Both sides of COMMIT were tried."""
    print(seen)  # noqa: T201 - pytest shows it for a failure
    assert seen["certainly aborted"] > 0
    assert seen["committed"] > 0
