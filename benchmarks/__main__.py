"""Measures, prints tables, and writes `benchmarks/results.json` and README's tables of costs.

Every ratio is the median over turns that stand side by side, so that both sides see the same
machine. `--quick` shortens everything and records nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import writing
from benchmarks.adopting import fill_table, measure_adoption
from benchmarks.contending import compare_contention
from benchmarks.database import fresh_database, say
from benchmarks.describing import compare_context
from benchmarks.growth import compare_growth
from benchmarks.looking_back import SHARE, compare_reading, fill_holdings
from benchmarks.publishing import compare_export, compare_idle
from benchmarks.readme import README, replace_costs
from benchmarks.replaying import fill_log, measure_replay
from benchmarks.restoring import compare_restoring
from oplog import Keyring
from oplog.testing import EmbeddedServer

RESULTS = Path(__file__).parent / "results.json"


FULL = writing.Settings()


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    writing: writing.Settings = FULL
    replay_rows: int = 100_000
    adopted_rows: int = 1_000_000
    archive_share: float = 1.0
    described_pairs: int = 3_000
    grown_records: int = 10_000_000


QUICK = Extent(writing.Settings(0.2, 4, 2, 2, 0.1), 10_000, 50_000, 0.01, 300, 100_000)


def main() -> None:
    """Run everything on an embedded server with `fsync` on."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="minutes, and nothing is recorded")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, help="these sections; the others stay as recorded"
    )
    parser.add_argument("--rounds", type=int, help="rounds of turns for each ratio (20)")
    parser.add_argument(
        "--records", type=int, help="records of the long log of section growth (10,000,000)"
    )
    chosen = parser.parse_args()
    extent = QUICK if chosen.quick else Extent()
    if chosen.records:
        extent = replace(extent, grown_records=chosen.records)
    if chosen.rounds:
        extent = replace(extent, writing=replace(extent.writing, rounds=chosen.rounds))
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if chosen.only else {}
    load = results.pop("load", {})
    with EmbeddedServer(fsync=True) as server:
        results |= {"machine": describe_machine(server.url), "load": load}
        for name, measure in SECTIONS.items():
            if not chosen.only or name in chosen.only:
                before = os.getloadavg()[0]
                results[name] = measure(server, extent)
                load[name] = [round(before, 1), round(os.getloadavg()[0], 1)]
                say(f"load before and after: {load[name][0]}, {load[name][1]}")
                if not chosen.quick:
                    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if not chosen.quick:
        README.write_text(replace_costs(README.read_text(), results))
        say(f"recorded in {RESULTS.name} and {README.name}")


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
        "processors": str(os.cpu_count()),
    }
    say("  ".join(f"{name} {value}" for name, value in described.items()))
    return described


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


def compare_past(server: str, rows: int) -> list[dict[str, Any]]:
    """A table as it was, of which a part has changed since, beside the table as it is."""
    say(f"\n{f'{rows} rows, 1 in {SHARE} changed since':48}{'as of / now':>22}{'target':>8}")
    with fresh_database(server) as url:
        engine = sa.create_engine(url)
        log, position = fill_holdings(engine, rows)
        rounds = [dict(compare_reading(engine, log, position)) for _ in range(3)]
        engine.dispose()
    found = []
    for what in rounds[0]:
        ratio = statistics.median(one[what] for one in rounds)
        # A sum costs next to nothing now, and the histories of the changed rows as of then.
        target = 3.0 if what == "all rows" else None
        say(f"{what:48}{ratio:>22.2f}{_tell_target(ratio, target)}")
        found.append({"what": what, "rows": rows, "ratio": round(ratio, 2), "target": target})
    return found


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


def describe_context(server: str, pairs: int) -> dict[str, Any]:
    """An insert inside a context beside one that is annotated; target 1.01."""
    row = compare_context(server, pairs)
    say(f"\n{'context':34}{'insert ms':>14}{'context us':>14}{'ratio':>8}{'target':>8}")
    target = _tell_target(row["ratio"], row["target"])
    say(
        f"{row['pairs']:>8} pairs of inserts{row['insert_milliseconds']:>23}"
        f"{row['context_microseconds']:>14}{row['ratio']:>8.3f}{target}"
    )
    return row


SECTIONS: dict[str, Callable[[EmbeddedServer, Extent], Any]] = {
    "writing": lambda server, extent: writing.compare_writing(server, extent.writing),
    "raw": lambda server, extent: writing.compare_raw(server, extent.writing),
    "bulk": lambda server, extent: writing.compare_bulk(server, extent.writing),
    "size": lambda server, extent: writing.measure_sizes(server, extent.writing),
    "memory": lambda server, extent: writing.measure_memory(server, extent.writing),
    "history": lambda server, extent: writing.compare_history(server, extent.writing),
    "wire": lambda server, extent: writing.measure_wire(server, extent.writing),
    "guards": lambda server, extent: writing.compare_guards(server, extent.writing),
    "context": lambda server, extent: describe_context(server.url, extent.described_pairs),
    "contention": lambda server, _: list(compare_writers(server.url)),
    "replay": lambda server, extent: list(compare_replay(server.url, extent.replay_rows)),
    "adoption": lambda server, extent: compare_adoption(server.url, extent.adopted_rows),
    "past": lambda server, extent: compare_past(server.url, extent.adopted_rows),
    "archive": lambda server, extent: compare_archive(server.url, extent.archive_share),
    "growth": lambda server, extent: list(
        compare_growth(server.url, extent.grown_records, extent.writing)
    ),
}
"""Name in the results -> how it is measured."""

if __name__ == "__main__":
    main()
