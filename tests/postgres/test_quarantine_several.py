"""Several records quarantined at once: all of them, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL, Engine

from oplog.errors import ChainBrokenError, ConfigurationError, OplogError, ReplayError
from oplog.postgres.quoting import quote_literal
from tests.postgres.poison import ODD, UNREADABLE, Forger
from tests.postgres.replay_models import Bench, add_account, make_bench
from tests.postgres.shop import open_shop

pytestmark = [
    pytest.mark.postgres,
    # Of what was quarantined before, where later records are judged.
    pytest.mark.filterwarnings("ignore::oplog.errors.QuarantineWarning"),
]

REASON = "appended by a process that went wrong"


@pytest.fixture
def bench(engine: Engine) -> Bench:
    bench = make_bench(engine)
    bench.write(lambda session: add_account(session, 1))
    return bench


def poison(bench: Bench, *names: str) -> list[int]:
    """Append bad records, one after the other; their positions."""
    forger = Forger(bench)
    return [{**UNREADABLE, **ODD}[name](forger) for name in names]


def quarantine(bench: Bench, *positions: int | range, reason: str = REASON) -> list[int]:
    """What is newly quarantined."""
    with bench.engine.connect() as connection:
        reports = bench.log.quarantine(connection, *positions, reason=reason)
    assert all(bool(report.error) != report.already for report in reports)
    return [report.record.position for report in reports if not report.already]


def list_quarantined(bench: Bench) -> list[int]:
    with bench.engine.connect() as connection:
        return [one.position for one in bench.log.list_quarantined(connection)]


def test_positions_and_ranges(bench: Bench) -> None:
    bad = poison(bench, "garbage", "no payload", "an unknown type", "cut short", "garbage")
    last = bench.last_position()
    # In any order, more than once, and with positions that nobody used.
    assert quarantine(bench, bad[4], range(bad[1], bad[2] + 1), bad[1]) == bad[1:3] + bad[4:]
    assert list_quarantined(bench) == bad[1:3] + bad[4:]
    assert bench.last_position() == last + 3
    # Again it writes only what is missing, and the first reason stays.
    assert quarantine(bench, range(bad[0], last + 1), reason="another") == [bad[0], bad[3]]
    assert list_quarantined(bench) == bad
    with bench.engine.connect() as connection:
        said = [one.reason == REASON for one in bench.log.list_quarantined(connection)]
    assert said == [False, True, True, False, True]
    assert quarantine(bench, range(bad[0], last + 1)) == []
    assert bench.last_position() == last + 5
    with bench.engine.connect() as connection:
        assert bench.log.verify(connection).ok


def test_positions_that_nobody_used_are_in_no_ranges_way(bench: Bench) -> None:
    bench.tamper("SELECT nextval('oplog.oplog_position_seq')")
    (bad,) = poison(bench, "garbage")
    assert quarantine(bench, range(bad - 1, bad + 1000)) == [bad]
    with pytest.raises(ConfigurationError, match=f"no record at position {bad - 1}\n"):
        quarantine(bench, bad - 1)
    with pytest.raises(ConfigurationError, match=f"no record at position {10**6} to {10**6 + 4}\n"):
        quarantine(bench, bad, range(10**6, 10**6 + 5))


@pytest.mark.parametrize("inside", [False, True])
def test_all_or_none(bench: Bench, inside: bool) -> None:
    """Also in a transaction of the caller's, which goes on and commits."""
    first = poison(bench, "garbage", "no payload")
    bench.write(lambda session: add_account(session, 2))
    good = bench.last_position()
    last = poison(bench, "garbage")
    refused: dict[str, tuple[type[OplogError], tuple[int | range, ...]]] = {
        "can be read, and fits": (ConfigurationError, (range(first[0], last[0] + 1),)),
        f"position {good} .*can be read": (ConfigurationError, (*first, good, *last)),
        "there is no record": (ConfigurationError, (*first, 999)),
    }
    for why, (error, positions) in refused.items():
        with bench.engine.connect() as connection:
            if inside:
                connection.exec_driver_sql("SELECT 1")
            with pytest.raises(error, match=why):
                bench.log.quarantine(connection, *positions, reason=REASON)
            if inside:
                connection.commit()
        assert list_quarantined(bench) == []
        assert bench.last_position() == last[0]
    assert quarantine(bench, *first, *last) == first + last


def test_an_altered_record_among_others(bench: Bench) -> None:
    bad = poison(bench, "garbage", "garbage")
    bench.tamper(
        "ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL",
        f"UPDATE oplog.oplog_record SET data = data || 'x' WHERE position = {bad[1]}",
    )
    with pytest.raises(ChainBrokenError):
        quarantine(bench, *bad)
    assert list_quarantined(bench) == []


def test_one_is_judged_without_those_before_it(bench: Bench) -> None:
    """As if each was quarantined by a command of its own."""
    bad = poison(bench, "a row that is there", "a value that is none", "a row that is there")
    with pytest.raises(ReplayError, match=f"position {bad[0]} "):
        quarantine(bench, bad[2])
    assert quarantine(bench, *reversed(bad)) == bad
    with bench.engine.connect() as connection:
        assert bench.log.verify(connection).ok


@pytest.mark.parametrize(
    "positions",
    [(), (0,), (-1,), (range(5, 5),), (range(9, 5),), (range(5),), (range(1, 9, 2),)],
)
def test_what_no_positions_are(bench: Bench, positions: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError, match="no record stands there") as refused:
        quarantine(bench, *positions)
    assert "range(5, 10)" in refused.value.hint


# -- the command ------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, database_url: URL) -> None:
    shop = open_shop(tmp_path, database_url)
    shop.fill()
    shop.execute(
        "ALTER TABLE oplog.oplog_type DISABLE TRIGGER ALL",
        f"DELETE FROM oplog.oplog_type WHERE type_name = {quote_literal('account')}",
    )
    said = ("--reason", REASON)
    assert shop.ask("quarantine", "1-3", "4", *said, code=2)["error"] == "ConfigurationError"
    report = shop.ask("quarantine", "2-3", "1", "2", *said)
    assert [(one["position"], one["already"]) for one in report["quarantined"]] == [
        (1, False),
        (2, False),
        (3, False),
    ]
    assert {one["reason"] for one in report["quarantined"]} == {REASON}
    out, _ = shop.call("quarantine", "1-2", "--reason", "another")
    assert out.count("quarantined before, nothing was written\nquarantined: position ") == 2


@pytest.mark.parametrize("text", ["0", "5-4", "0-4", "-4", "5-", "a", "1-2-3", "1,2", "9" * 19])
def test_what_the_command_does_not_take(tmp_path: Path, database_url: URL, text: str) -> None:
    shop = open_shop(tmp_path, database_url)
    _, err = shop.call("quarantine", "--reason", REASON, "--", text, code=2)
    assert "is not a position such as 5, or a range such as 5-9" in err
