"""Measures, prints the table, and writes `benchmarks/results.json`.

Every ratio is the median over adjacent pairs: one measurement of plain SQLAlchemy and one of the
other way, directly after each other, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.adopting import fill_table, measure_adoption
from benchmarks.contending import compare_contention
from benchmarks.database import fresh_database, say
from benchmarks.guarding import compare_bulk, compare_guards, compare_raw
from benchmarks.measuring import Clients, count_statements, list_rows, make_sessions
from benchmarks.publishing import compare_export, compare_idle
from benchmarks.replaying import fill_log, measure_replay
from benchmarks.restoring import compare_restoring
from benchmarks.workloads import WORKLOADS, WRITERS, Workload
from oplog import Keyring
from oplog.testing import EmbeddedServer

RESULTS = Path(__file__).parent / "results.json"
TARGETS = {
    ("one", "log"): 0.75,
    ("mixed", "log"): 0.85,
    ("many", "log"): 0.60,
    ("many", "log, one aggregate"): 0.80,
}


def main() -> None:
    """Run everything on an embedded server with `fsync` on."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="pairs for each ratio (10)")
    parser.add_argument("--replay-rows", type=int, default=100_000)
    parser.add_argument("--adopted-rows", type=int, default=1_000_000)
    parser.add_argument(
        "--archive-share", type=float, default=1.0, help="of the archive's sizes: 0.01 is quick"
    )
    parser.add_argument("--only", choices=SECTIONS, help="one section; the others stay as they are")
    chosen = parser.parse_args()
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if chosen.only else {}
    with EmbeddedServer(fsync=True) as server:
        results = {**known, "machine": describe_machine(server.url)}
        for name, measure in SECTIONS.items():
            if chosen.only in (None, name):
                results[name] = measure(server.url, chosen)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    say(f"written to {RESULTS.relative_to(RESULTS.parent.parent)}")


def describe_machine(url: str) -> dict[str, str]:
    """Describe the machine and the server of the measurement."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
        fsync = connection.exec_driver_sql("SHOW fsync").scalar_one()
    engine.dispose()
    described = {
        "python": platform.python_version(),
        "sqlalchemy": sa.__version__,
        "postgresql": str(version),
        "fsync": str(fsync),
        "processor": platform.machine(),
    }
    say("  ".join(f"{name} {value}" for name, value in described.items()))
    return described


def compare_writing(server: str, count: int, pairs: int) -> Iterator[dict[str, Any]]:
    """Transactions per second of every way, as ratios to plain SQLAlchemy."""
    say(f"\n{count} client process{'es' if count > 1 else ''}: ratio to plain, {pairs} pairs")
    say(f"{'workload':34}{'way':22}{'tx/s':>9}{'ratio':>8}{'spread':>14}{'target':>8}")
    with fresh_database(server) as url:
        clients = Clients(url, count)
        for workload in WORKLOADS:
            for way in WRITERS:
                clients.measure(way, workload)
            for way in WRITERS:
                if way != "plain":
                    yield _compare_pairs(clients, workload, way, pairs)
        clients.stop()


def _compare_pairs(clients: Clients, workload: Workload, way: str, pairs: int) -> dict[str, Any]:
    ratios, rates, plains = [], [], []
    for turn in range(pairs):
        # The sides go first in turns: a checkpoint or a warm cache must not favour one of them.
        order = ("plain", way) if turn % 2 == 0 else (way, "plain")
        measured = {one: clients.measure(one, workload) for one in order}
        ratios.append(measured[way] / measured["plain"])
        rates.append(measured[way])
        plains.append(measured["plain"])
    quartiles = statistics.quantiles(ratios, n=4)
    row = {
        "clients": clients.count,
        "workload": workload.title,
        "way": way,
        "transactions_per_second": round(statistics.median(rates), 1),
        "plain_transactions_per_second": round(statistics.median(plains), 1),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "target": TARGETS.get((workload.name, way)),
    }
    target = row["target"]
    say(
        f"{workload.title:34}{way:22}{row['transactions_per_second']:>9}{row['ratio']:>8.2f}"
        f"{quartiles[0]:>8.2f}-{quartiles[2]:.2f}{'' if target is None else f'{target:8.2f}'}"
    )
    return row


def compare_guarding(server: str, pairs: int) -> Iterator[dict[str, Any]]:
    """What guards cost, and what they capture."""
    say(f"\n{'guards':64}{'ms':>9}{'base ms':>9}{'ratio':>7}{'spread':>13}{'target':>8}")
    for compare in (compare_guards, compare_raw, compare_bulk):
        with fresh_database(server) as one, fresh_database(server) as other:
            for row in compare((one, other), pairs):
                low, high = row["quartiles"]
                target = "" if row["target"] is None else f"{row['target']:8.2f}"
                say(
                    f"{row['what']:64}{row['milliseconds']:>9}{row['base_milliseconds']:>9}"
                    f"{row['ratio']:>7.2f}{low:>8.2f}-{high:.2f}{target}"
                )
                yield row


def compare_writers(server: str) -> Iterator[dict[str, Any]]:
    """Goodput and wasted work of writers on one aggregate; ratio to an aggregate each."""
    say(f"\n{'writers':>7}  {'way':34}{'commits/s':>10}{'ratio':>8}{'in vain':>9}{'longest s':>11}")
    with fresh_database(server) as url:
        for row in compare_contention(url):
            say(
                f"{row['writers']:>7}  {row['way']:34}{row['commits_per_second']:>10}"
                f"{row['ratio']:>8.2f}{row['vain_per_commit']:>9.2f}{row['longest_seconds']:>11.2f}"
            )
            yield row


def compare_wire(server: str) -> Iterator[dict[str, Any]]:
    """Statements (BEGIN and COMMIT included) and round trips of one transaction."""
    say(f"\n{'workload':34}{'way':22}{'statements':>12}{'round trips':>13}")
    with fresh_database(server) as url:
        for workload in WORKLOADS:
            for way in WRITERS:
                statements, trips = count_statements(url, way, workload)
                say(f"{workload.title:34}{way:22}{statements:>12.1f}{trips:>13.1f}")
                yield {
                    "workload": workload.title,
                    "way": way,
                    "statements": round(statements, 2),
                    "round_trips": round(trips, 2),
                }


def measure_size(server: str) -> Iterator[dict[str, Any]]:
    """Bytes of the log, indexes included, for each row that changed."""
    say(f"\n{'workload':34}{'way':22}{'log bytes/row':>14}")
    for workload in WORKLOADS:
        for way in ("outbox", "log", "log, one aggregate"):
            with fresh_database(server) as url:
                size = _measure_size(url, way, workload)
            say(f"{workload.title:34}{way:22}{size:>14.0f}")
            yield {"workload": workload.title, "way": way, "log_bytes_per_row": round(size, 1)}


def _measure_size(url: str, way: str, workload: Workload) -> float:
    written = make_sessions(url, way, Keyring.generate())
    plain = make_sessions(url, "plain", Keyring.generate())
    runs = 4
    before = _read_size(plain, way)
    for _ in range(runs):
        WRITERS[way](written, workload, list_rows(plain, workload))
    grown = _read_size(plain, way) - before
    written.kw["bind"].dispose()
    plain.kw["bind"].dispose()
    return grown / (runs * workload.transactions * workload.rows)


def _read_size(sessions: sessionmaker[Session], way: str) -> int:
    names = (
        ("outbox",)
        if way == "outbox"
        else ("oplog.oplog_entry", "oplog.oplog_ticket", "oplog.oplog_metadata")
    )
    with sessions() as session:
        return sum(
            session.execute(sa.select(sa.func.pg_total_relation_size(name))).scalar_one()
            for name in names
        )


def compare_replay(server: str, rows: int) -> Iterator[dict[str, Any]]:
    """Replay beside COPY of the same rows; target 0.25 of COPY."""
    say(f"\n{'rows per entry':34}{'replay rows/s':>14}{'COPY rows/s':>14}{'ratio':>8}{'target':>8}")
    for per_entry, count in ((1000, rows), (1, rows // 5)):
        keyring = Keyring.generate()
        with fresh_database(server) as url:
            fill_log(url, rows_per_entry=per_entry, rows=count, keyring=keyring)
            engine = sa.create_engine(url)
            measured = [measure_replay(engine, keyring) for _ in range(3)]
            engine.dispose()
        replayed, copied = (statistics.median(column) for column in zip(*measured, strict=True))
        ratio = statistics.median(one / two for one, two in measured)
        say(f"{per_entry:<34}{replayed:>14.0f}{copied:>14.0f}{ratio:>8.2f}{0.25:>8.2f}")
        yield {
            "rows_per_entry": per_entry,
            "replay_rows_per_second": round(replayed),
            "copy_rows_per_second": round(copied),
            "ratio": round(ratio, 3),
            "target": 0.25,
        }


def compare_adoption(server: str, rows: int) -> dict[str, Any]:
    """Adoption beside COPY TO of the same table; target 0.25 of COPY."""
    say(f"\n{'table of':34}{'adopt rows/s':>14}{'COPY rows/s':>14}{'ratio':>8}{'target':>8}")
    with fresh_database(server) as url:
        engine = sa.create_engine(url)
        fill_table(engine, rows)
        measured = [measure_adoption(engine, number) for number in range(3)]
        engine.dispose()
    copied, adopted = (statistics.median(column) for column in zip(*measured, strict=True))
    ratio = statistics.median(two / one for one, two in measured)
    say(f"{f'{rows} rows':34}{adopted:>14.0f}{copied:>14.0f}{ratio:>8.2f}{0.25:>8.2f}")
    return {
        "rows": rows,
        "adopt_rows_per_second": round(adopted),
        "copy_rows_per_second": round(copied),
        "ratio": round(ratio, 3),
        "target": 0.25,
    }


def _tell_target(ratio: float, target: float | None, *, least: bool = False) -> str:
    """Print the target, and whether it was missed; `least`: the target is a minimum."""
    if target is None:
        return ""
    missed = ratio < target if least else ratio > target
    return f"{target:8.2f}{'  missed' if missed else ''}"


def compare_archive(server: str, share: float) -> dict[str, Any]:
    """Publishing, passes with nothing new, snapshots and restores."""
    found: dict[str, Any] = {"export": []}
    say(f"\n{'publishing':34}{'entries/s':>14}{'to raw':>14}{'to zstd':>8}{'target':>8}")
    for row in compare_export(server, round(20_000 * share)):
        say(
            f"{row['entries']:>8} entries, {row['log']:16}{row['entries_per_second']:>14}"
            f"{row['uploaded_to_raw']:>14.2f}{row['uploaded_to_zstd']:>8.2f}"
            f"{_tell_target(row['uploaded_to_zstd'], row['target'])}"
        )
        found["export"].append(row)
    found["idle"] = row = compare_idle(server, round(1_000_000 * share))
    say(f"\n{'a pass with nothing new':48}{'ms':>14}{'ratio':>8}{'target':>8}")
    for count, milliseconds in zip(row["entries"], row["milliseconds"], strict=True):
        say(f"{count:>8} entries behind it{milliseconds:>38.2f}")
    say(f"{row['ratio']:>70.2f}{_tell_target(row['ratio'], row['target'])}")
    found["rows"] = []
    say(f"\n{'restoring, snapshots':66}{'rows/s':>9}{'COPY':>9}{'ratio':>8}{'target':>8}")
    for row in compare_restoring(server, round(1_000_000 * share)):
        rates = [row.get(f"{which}_rows_per_second", "") for which in ("restore", "copy")]
        target = _tell_target(row["ratio"], row["target"], least="restore" in row["what"])
        say(f"{row['what']:66}{rates[0]:>9}{rates[1]:>9}{row['ratio']:>8.3f}{target}")
        found["rows"].append(row)
    return found


SECTIONS: dict[str, Callable[[str, argparse.Namespace], Any]] = {
    "writing": lambda url, chosen: [
        row for clients in (1, 2) for row in compare_writing(url, clients, chosen.pairs)
    ],
    "guards": lambda url, chosen: list(compare_guarding(url, chosen.pairs)),
    "contention": lambda url, _: list(compare_writers(url)),
    "wire": lambda url, _: list(compare_wire(url)),
    "size": lambda url, _: list(measure_size(url)),
    "replay": lambda url, chosen: list(compare_replay(url, chosen.replay_rows)),
    "adoption": lambda url, chosen: compare_adoption(url, chosen.adopted_rows),
    "archive": lambda url, chosen: compare_archive(url, chosen.archive_share),
}
"""Name in the results -> how it is measured."""

if __name__ == "__main__":
    main()
