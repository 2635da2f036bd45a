"""Contests in turns: what writing costs with a log, beside plain SQLAlchemy and two others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.clients import Clients, Seat
from benchmarks.database import empty_database, say
from benchmarks.targets import BYTES, GUARDS, MEMORY, RATIOS, Target, expect_of_more
from benchmarks.turns import Compared, Slice, pair_ratios, plan_round, summarise
from benchmarks.workloads import (
    INSERT_SELECT,
    RAW,
    UPDATE_ALL,
    WORKLOADS,
    Workload,
)
from oplog.testing import EmbeddedServer

RIVALS = ("outbox", "PostgreSQL-Audit", "log", "log, one aggregate")
BY_THEMSELVES = RIVALS[1:]
"""Those that see SQL text; an outbox knows only what the application tells it."""
ROWS_OF_ONE = len(WORKLOADS) * (1 + len(RIVALS))
HISTORY_ROWS = 500
HISTORY_ROUNDS = 10
MEMORY_ROWS = 200_000

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How long to measure: seconds of a turn, rounds of turns, share of the fixed amounts."""

    seconds: float = 0.4
    rounds: int = 20
    crowded_rounds: int = 12
    bulk_rounds: int = 3
    share: float = 1.0


@contextmanager
def seat_clients(
    server: EmbeddedServer, names: Sequence[str], *, count: int = 1
) -> Iterator[dict[str, Clients]]:
    """Clients of all contenders, alive at once, each contender with a database of its own."""
    with ExitStack() as stack:
        seated = {}
        for name in names:
            url = stack.enter_context(empty_database(server.url))
            seated[name] = Clients(name, url, count=count, server_pid=server.pid)
            stack.callback(seated[name].stop)
        yield seated


def compete(
    base: str,
    seated: Mapping[str, Clients],
    *,
    rounds: int,
    turn: Callable[[Clients], Slice],
) -> dict[str, Compared]:
    """Turns of all contenders, in rounds, after one turn each that does not count."""
    for clients in seated.values():
        turn(clients)
    rivals = [name for name in seated if name != base]
    slices: dict[str, list[Slice]] = {name: [] for name in seated}
    ratios: dict[str, list[float]] = {base: [1.0], **{name: [] for name in rivals}}
    for number in range(rounds):
        for group in plan_round(base, rivals, number):
            measured = {name: turn(seated[name]) for name in group}
            for name, ratio in pair_ratios(base, measured).items():
                ratios[name].append(ratio)
            for name, one in measured.items():
                slices[name].append(one)
    return {name: summarise(slices[name], ratios[name]) for name in seated}


def compare_writing(server: EmbeddedServer, settings: Settings) -> list[Row]:
    """Transactions of three sizes with one, two and eight clients."""
    rows: list[Row] = []
    for count in (1, 2, 8):
        rounds = settings.rounds if count == 1 else min(settings.rounds, settings.crowded_rounds)
        _say_head(f"{count} client{'s' if count > 1 else ''}, ratio to plain", rounds)
        alone = {(row["way"], row["workload"]): row["ratio"] for row in rows[:ROWS_OF_ONE]}
        with seat_clients(server, ("plain", *RIVALS), count=count) as seated:
            for workload in WORKLOADS:
                found = _compete_writing(
                    "plain", seated, workload, replace(settings, rounds=rounds)
                )
                for name, compared in found.items():
                    key = (name, workload.name)
                    target = RATIOS.get(key)
                    if target and count > 1:
                        target = expect_of_more(alone[name, workload.title])
                    rows.append({"clients": count, **_report(workload, name, compared, target)})
    return rows


def compare_raw(server: EmbeddedServer, settings: Settings) -> list[Row]:
    """One insert as SQL text, which guards and triggers capture."""
    _say_head("SQL text, ratio to plain", settings.rounds)
    with seat_clients(server, ("plain", *BY_THEMSELVES)) as seated:
        found = _compete_writing("plain", seated, RAW, settings)
    return [_report(RAW, name, one, RATIOS.get((name, RAW.name))) for name, one in found.items()]


def compare_bulk(server: EmbeddedServer, settings: Settings) -> list[Row]:
    """Many rows by one statement: a turn is one transaction."""
    rows = []
    rounds = settings.bulk_rounds
    _say_head("many rows by one statement, ratio to plain", rounds)
    for workload, names in (
        (UPDATE_ALL, BY_THEMSELVES),
        (INSERT_SELECT, tuple(name for name in BY_THEMSELVES if name != "log, one aggregate")),
    ):
        with seat_clients(server, ("plain", *names)) as seated:
            if workload is UPDATE_ALL:
                for clients in seated.values():
                    clients.ask(Seat.repeat, (INSERT_SELECT.name, 1))
            found = compete(
                "plain",
                seated,
                rounds=rounds,
                turn=lambda clients, name=workload.name: clients.take_turn(name, 0),  # type: ignore[misc]
            )
        for name, compared in found.items():
            target = RATIOS.get((name, workload.name))
            rows.append(_report(workload, name, compared, target))
    return rows


def compare_guards(server: EmbeddedServer, settings: Settings) -> list[Row]:
    """Logged transactions on guarded tables, as a ratio to the same on tables without guards."""
    _say_head("guards, ratio to the log without them", settings.rounds)
    rows = []
    with seat_clients(server, ("log, no guards", "log")) as seated:
        for workload in WORKLOADS:
            found = _compete_writing("log, no guards", seated, workload, settings)
            for name, compared in found.items():
                target = GUARDS if name == "log" else None
                rows.append(_report(workload, name, compared, target))
    return rows


def compare_history(server: EmbeddedServer, settings: Settings) -> list[Row]:
    """Reads of one row's history, of three changes; plain reads the row itself.

    The outbox and PostgreSQL-Audit have no index for that. They are given one after they wrote,
    and its price is not among what their writing costs.
    """
    rounds = max(1, min(HISTORY_ROUNDS, settings.rounds))
    _say_head(f"history of one of {HISTORY_ROWS} rows, ratio to reading the row", rounds)
    with seat_clients(server, ("plain", *RIVALS)) as seated:
        for clients in seated.values():
            clients.ask(Seat.prepare_history, HISTORY_ROWS)
        found = compete(
            "plain",
            seated,
            rounds=rounds,
            turn=lambda clients: clients.read_turn(HISTORY_ROWS, settings.seconds),
        )
    return [_report_figures("read of history", name, one, None) for name, one in found.items()]


def measure_sizes(server: EmbeddedServer, settings: Settings) -> list[Row]:
    """Bytes of history, indexes included, for each row that changed."""
    say(f"\n{'workload':34}{'contender':22}{'bytes/row':>10}{'target':>14}")
    rows = []
    for workload in WORKLOADS:
        count = max(2, round(workload.transactions * settings.share))
        with seat_clients(server, RIVALS) as seated:
            for name, clients in seated.items():
                # The first transactions have no rows to change.
                clients.ask(Seat.repeat, (workload.name, 2))
                before = clients.ask(Seat.measure_size, None)
                clients.ask(Seat.repeat, (workload.name, count))
                grown = clients.ask(Seat.measure_size, None) - before
                size = round(grown / (count * workload.rows), 1)
                target = BYTES.get((name, workload.name))
                say(f"{workload.title:34}{name:22}{size:>10}{_tell(target, size)}")
                rows.append(
                    {
                        "workload": workload.title,
                        "way": name,
                        "bytes_per_row": size,
                        **_give_target(target, size),
                    }
                )
    return rows


def measure_memory(server: EmbeddedServer, settings: Settings) -> list[Row]:
    """Peak memory of a client that inserts many rows in one transaction."""
    count = max(1000, round(MEMORY_ROWS * settings.share) // 1000 * 1000)
    say(f"\n{f'{count:,} rows in one transaction':56}{'peak MB':>10}{'target':>14}")
    rows = []
    for name in ("plain", *BY_THEMSELVES):
        with seat_clients(server, (name,)) as seated:
            measured = seated[name].ask(Seat.measure_memory, count)
        row: Row = {"rows": count, "way": name, "peak_mb": None}
        if measured is None:
            say(f"{'':34}{name:22}{'refused':>10}  the transaction is too large: missed")
            row["verdict"] = "missed"
        else:
            peak = round(measured / 1e6, 1)
            target = MEMORY if name.startswith("log") else None
            say(f"{'':34}{name:22}{peak:>10}{_tell(target, peak)}")
            row |= {"peak_mb": peak, **_give_target(target, peak)}
        rows.append(row)
    return rows


def measure_wire(server: EmbeddedServer, _: Settings) -> list[Row]:
    """Statements (BEGIN and COMMIT included) and round trips of one transaction."""
    say(f"\n{'workload':34}{'contender':22}{'statements':>12}{'round trips':>13}")
    rows = []
    with seat_clients(server, ("plain", *RIVALS)) as seated:
        for workload in WORKLOADS:
            for name, clients in seated.items():
                statements, trips = clients.ask(Seat.trace, workload.name)
                say(f"{workload.title:34}{name:22}{statements:>12.1f}{trips:>13.1f}")
                rows.append(
                    {
                        "workload": workload.title,
                        "way": name,
                        "statements": round(statements, 2),
                        "round_trips": round(trips, 2),
                    }
                )
    return rows


def _compete_writing(
    base: str, seated: Mapping[str, Clients], workload: Workload, settings: Settings
) -> dict[str, Compared]:
    return compete(
        base,
        seated,
        rounds=settings.rounds,
        turn=lambda clients: clients.take_turn(workload.name, settings.seconds),
    )


def _report(workload: Workload, name: str, compared: Compared, target: Target | None) -> Row:
    return _report_figures(workload.title, name, compared, target)


def _report_figures(title: str, name: str, compared: Compared, target: Target | None) -> Row:
    """Print one line, and return it for the results."""
    ratio, server = compared.ratio, compared.server_milliseconds
    say(
        f"{title:34}{name:22}{compared.per_second:>9.1f}{ratio.median:>8.3f}"
        f"{ratio.low:>8.2f}-{ratio.high:.2f}{compared.client_milliseconds:>11.3f}"
        f"{'-' if server is None else f'{server:.3f}':>11}{_tell(target, ratio.median)}"
        f"{f'  {compared.vain:.2f} attempts in vain' if compared.vain else ''}"
    )
    return {
        "workload": title,
        "way": name,
        "per_second": round(compared.per_second, 1),
        "ratio": round(ratio.median, 3),
        "quartiles": [round(ratio.low, 3), round(ratio.high, 3)],
        "client_milliseconds": round(compared.client_milliseconds, 4),
        "server_milliseconds": None if server is None else round(server, 4),
        **({"vain_per_commit": round(compared.vain, 3)} if compared.vain else {}),
        **_give_target(target, ratio.median),
    }


def _say_head(title: str, rounds: int) -> None:
    say(f"\n{title}, {rounds} rounds; CPU in ms a transaction")
    say(
        f"{'workload':34}{'contender':22}{'tx/s':>9}{'ratio':>8}{'quartiles':>13}"
        f"{'client CPU':>11}{'server CPU':>11}{'target':>14}"
    )


def _tell(target: Target | None, figure: float) -> str:
    return "" if target is None else f"{target.describe():>16}  {target.judge(figure)}"


def _give_target(target: Target | None, figure: float) -> Row:
    if target is None:
        return {}
    return target.to_json(figure)
