"""README's tables of costs, made from the recorded figures; ratios, and bytes of the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- costs: written by make bench -->\n"
END = "<!-- end of costs -->\n"
NAMES = {
    "outbox": "an outbox row, written by hand",
    "PostgreSQL-Audit": "PostgreSQL-Audit",
    "log": "`oplog`, an aggregate for each row",
    "log, one aggregate": "`oplog`, one aggregate for the table",
}
LOGS = ("log", "log, one aggregate")
WORKLOADS = ("1 insert", "10 inserts, 5 updates, 1 delete", "1,000 inserts")

Row = Mapping[str, Any]
Found = dict[tuple[str, str], Row]


def render_costs(results: Mapping[str, Any]) -> str:
    """The tables, as Markdown: three, and one of a growing log if that was measured."""
    alone = _index(row for row in results["writing"] if row["clients"] == 1)
    return "\n".join(
        (
            _render_rates(alone, _index(results["size"])),
            _render_cpu(alone),
            _render_further(results),
            *([_render_growth(results["growth"])] if "growth" in results else []),
        )
    )


def replace_costs(page: str, results: Mapping[str, Any]) -> str:
    """The page with the tables between its marks made anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("README.md has no marks around the tables of costs")
    return f"{before}{BEGIN}\n{render_costs(results)}\n{END}{after}"


def _render_rates(alone: Found, sizes: Found) -> str:
    """Transactions per second as ratios to plain SQLAlchemy, and bytes for each row."""
    rows = [
        [
            NAMES[way],
            *(_show_ratio(alone[way, workload]) for workload in WORKLOADS),
            f"{sizes[way, WORKLOADS[1]]['bytes_per_row']:.0f}",
        ]
        for way in NAMES
    ]
    return _render("transactions per second", (*WORKLOADS, "bytes a row, of 16 rows"), rows)


def _render_cpu(alone: Found) -> str:
    """CPU of client and server as multiples of what plain SQLAlchemy takes."""
    rows = [
        [NAMES[way], *(_show_cpu(alone[way, name], alone["plain", name]) for name in WORKLOADS)]
        for way in NAMES
    ]
    return _render("CPU, client and server", WORKLOADS, rows)


def _render_further(results: Mapping[str, Any]) -> str:
    """What else was measured, for both forms of the log."""
    rows = []
    for count in (2, 8):
        found = _index(row for row in results["writing"] if row["clients"] == count)
        for name in WORKLOADS[:2]:
            cells = (f"{found[way, name]['ratio']:.2f}" for way in LOGS)
            rows.append([f"{count} clients: {name}", *cells])
    for section in ("raw", "bulk"):
        figures = _index(results[section])
        rows += [
            [name, *(_show(figures.get((way, name)), "ratio", 2) for way in LOGS)]
            for name in dict.fromkeys(row["workload"] for row in results[section])
        ]
    history = _index(results["history"])
    cells = (_show(history.get((way, "read of history")), "ratio", 2) for way in LOGS)
    rows.append(["read a row's history, to reading the row", *cells])
    memory = {row["way"]: row for row in results["memory"]}
    count = memory["plain"]["rows"]
    title = f"peak client memory, {count:,} rows in a transaction, in MB"
    title += f" (plain: {memory['plain']['peak_mb']:.0f})"
    rows.append([title, *(_show(memory.get(way), "peak_mb", 0) for way in LOGS)])
    return _render("further figures", ("an aggregate for each row", "one aggregate"), rows)


def _render_growth(rows: Sequence[Row]) -> str:
    """What takes how long with many records in the log, and as a ratio to few."""
    few, many = rows[0]["records"]
    return _render(
        f"with {many:,} records in the log",
        ("milliseconds", f"ratio to {few:,} records"),
        [[row["work"], f"{row['milliseconds'][1]:.2f}", _show_ratio(row)] for row in rows],
    )


def _index(rows: Iterable[Row]) -> Found:
    return {(row["way"], row["workload"]): row for row in rows}


def _render(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = [title, *columns]
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _show_ratio(row: Row) -> str:
    low, high = row["quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _show_cpu(row: Row, plain: Row) -> str:
    """Multiples of plain's CPU; a server whose processes cannot be seen has none."""
    return " / ".join(
        f"{row[side] / plain[side]:.1f}" if row[side] and plain[side] else "?"
        for side in ("client_milliseconds", "server_milliseconds")
    )


def _show(row: Row | None, figure: str, digits: int) -> str:
    """A figure; nothing where it was not measured, and `refused` where the log refused the work."""
    if row is None:
        return ""
    return "refused" if row[figure] is None else f"{row[figure]:.{digits}f}"
