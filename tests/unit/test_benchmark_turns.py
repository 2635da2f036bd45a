"""Who has a turn when, what a ratio is, and what the quartiles are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.turns import (
    Quartiles,
    Slice,
    find_quartiles,
    join_clients,
    pair_ratios,
    plan_round,
    summarise,
)
from benchmarks.wire import count_trips

pytestmark = pytest.mark.unit

RIVALS = ("a", "b", "c", "d")
SLICE = Slice(transactions=10, per_second=20.0, client_seconds=0.1, server_seconds=0.2)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("number", range(9))
def test_every_rival_has_one_turn_with_the_base_beside_it(count: int, number: int) -> None:
    groups = plan_round("plain", RIVALS[:count], number)
    turns = [name for group in groups for name in group]
    assert sorted(name for name in turns if name != "plain") == sorted(RIVALS[:count])
    for group in groups:
        assert group.count("plain") == 1
        where = group.index("plain")
        assert all(abs(place - where) <= 1 for place in range(len(group)))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_everybody_stands_in_every_place_and_on_both_sides_of_the_base(count: int) -> None:
    rivals = RIVALS[:count]
    places: dict[str, Counter[int]] = {name: Counter() for name in rivals}
    before: Counter[str] = Counter()
    rounds = 2 * count
    for number in range(rounds):
        groups = plan_round("plain", rivals, number)
        order = [name for group in groups for name in group if name != "plain"]
        for place, name in enumerate(order):
            places[name][place] += 1
        for group in groups:
            before.update(group[: group.index("plain")])
    assert places == {name: Counter(dict.fromkeys(range(count), 2)) for name in rivals}
    assert before == dict.fromkeys(rivals, count)


def test_a_ratio_is_to_the_turn_of_the_base_in_the_same_group() -> None:
    group = {"a": SLICE, "plain": replace(SLICE, per_second=40.0), "b": SLICE}
    assert pair_ratios("plain", group) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], Quartiles(3.0, 3.0, 3.0)),
        ([1.0, 3.0], Quartiles(1.5, 2.0, 2.5)),
        ([5.0, 1.0, 4.0, 2.0, 3.0], Quartiles(2.0, 3.0, 4.0)),
    ],
)
def test_quartiles_stay_within_the_values(values: list[float], expected: Quartiles) -> None:
    assert find_quartiles(values) == expected


def test_clients_that_work_at_once_are_one_turn() -> None:
    joined = join_clients([SLICE, replace(SLICE, transactions=5, per_second=9.0, vain=2)], 0.7)
    assert joined.transactions == 15
    assert joined.per_second == 29.0
    assert joined.client_seconds == pytest.approx(0.2)
    assert joined.server_seconds == 0.7
    assert joined.vain == 2


def test_cpu_is_divided_by_the_transactions_of_all_turns() -> None:
    short = Slice(transactions=5, per_second=10.0, client_seconds=0.2, server_seconds=0.1, vain=3)
    found = summarise([SLICE, short, short], [0.5, 0.25, 0.75])
    assert found.ratio.median == 0.5
    assert found.per_second == 10.0
    assert found.client_milliseconds == pytest.approx(1000 * 0.5 / 20)
    assert found.server_milliseconds == pytest.approx(1000 * 0.4 / 20)
    assert found.vain == pytest.approx(6 / 20)


def test_the_servers_cpu_may_be_unknown() -> None:
    unknown = replace(SLICE, server_seconds=None)
    assert summarise([unknown], [1.0]).server_milliseconds is None


def test_a_round_trip_is_an_answer_after_a_request() -> None:
    trace = "F\t1\tQuery\nF\t2\tSync\nB\t3\tReady\nB\t4\tReady\nF\t5\tQuery\nB\t6\tReady\n"
    assert count_trips(trace) == 2
