"""Turns, ratios and quartiles: the arithmetic of a comparison, without a database.

What is compared works in short turns, and each has a turn of the base directly before or after
its own. A machine that others use, a checkpoint or a vacuum then touches both sides of a ratio,
or is one turn among many. The order changes from round to round, so that nobody stands in the
same place all the time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slice:
    """One turn: transactions, their rate, and the CPU seconds that they took on both sides.

    `vain`: attempts that lost a conflict and ran again. Only transactions that committed count.
    """

    transactions: int
    per_second: float
    client_seconds: float
    server_seconds: float | None = None
    vain: int = 0


@dataclass(frozen=True)
class Quartiles:
    """First quartile, median and third quartile."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Compared:
    """All turns of one contestant, as they are reported."""

    ratio: Quartiles
    per_second: float
    client_milliseconds: float
    server_milliseconds: float | None
    vain: float


def plan_round(base: str, rivals: Sequence[str], number: int) -> list[tuple[str, ...]]:
    """Groups of two rivals with the base between them; the last group may lack one.

    `number` counts rounds from 0. Each rival comes first, second, and so on in turns; when all
    had every place, the order is reversed.
    """
    start = number % len(rivals)
    turned = [*rivals[start:], *rivals[:start]]
    groups: list[tuple[str, ...]] = []
    for first in range(0, len(turned), 2):
        one, *other = turned[first : first + 2]
        groups.append((one, base, *other))
    if number // len(rivals) % 2:
        groups = [tuple(reversed(group)) for group in reversed(groups)]
    return groups


def pair_ratios(base: str, group: Mapping[str, Slice]) -> dict[str, float]:
    """Rate of each rival of a group, as a ratio to the base's turn beside it."""
    plain = group[base].per_second
    return {name: one.per_second / plain for name, one in group.items() if name != base}


def find_quartiles(values: Sequence[float]) -> Quartiles:
    """Quartiles, from the smallest to the largest value; of one value, that value."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(low, median, high)


def join_clients(slices: Sequence[Slice], server_seconds: float | None) -> Slice:
    """One turn that several clients had at once, with what the server did meanwhile."""
    return Slice(
        transactions=sum(one.transactions for one in slices),
        per_second=sum(one.per_second for one in slices),
        client_seconds=sum(one.client_seconds for one in slices),
        server_seconds=server_seconds,
        vain=sum(one.vain for one in slices),
    )


def summarise(slices: Sequence[Slice], ratios: Sequence[float]) -> Compared:
    """Median ratio and rate; CPU milliseconds and vain attempts a transaction over all turns."""
    transactions = sum(one.transactions for one in slices)
    on_server = [one.server_seconds for one in slices if one.server_seconds is not None]
    client = sum(one.client_seconds for one in slices)
    return Compared(
        ratio=find_quartiles(ratios),
        per_second=statistics.median(one.per_second for one in slices),
        client_milliseconds=1000 * client / transactions,
        server_milliseconds=1000 * sum(on_server) / transactions if on_server else None,
        vain=sum(one.vain for one in slices) / transactions,
    )
