"""What README says the log costs is what was recorded, and each table is whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.readme import BEGIN, END, NAMES, README, WORKLOADS, render_costs, replace_costs
from tests.docs.pages import ROOT

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results.json").read_text("utf-8"))
    return found


def test_the_tables_of_costs_are_those_of_the_recorded_figures(results: dict[str, Any]) -> None:
    page = README.read_text("utf-8")
    assert replace_costs(page, results) == page
    assert "with `fsync` on" in page
    assert results["machine"]["fsync"] == "on"


def test_another_figure_changes_the_page_between_its_marks(results: dict[str, Any]) -> None:
    page = README.read_text("utf-8")
    rows = [{**row, "ratio": 0.01} for row in results["writing"]]
    changed = replace_costs(page, {**results, "writing": rows})
    assert changed.count("0.01 (") == len(NAMES) * len(WORKLOADS)
    assert changed.partition(BEGIN)[0] == page.partition(BEGIN)[0]
    assert changed.partition(END)[2] == page.partition(END)[2]


def test_a_page_without_marks_is_refused(results: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no marks"):
        replace_costs("# oplog\n", results)


GROWTH = [
    {"work": work, "records": [5, 500], "milliseconds": [1, 2.345], "ratio": 1.5}
    | {"quartiles": [1.25, 1.75]}
    for work in ("reading", "writing", "asking", "waiting")
]


@pytest.mark.parametrize(("growth", "count"), [({}, 3), ({"growth": GROWTH}, 4)])
def test_the_rows_of_a_table_have_its_columns(
    results: dict[str, Any], growth: dict[str, Any], count: int
) -> None:
    kept = {name: found for name, found in results.items() if name != "growth"}
    tables = render_costs(kept | growth).strip().split("\n\n")
    columns = [{line.count(" | ") for line in table.splitlines()} for table in tables]
    assert [len(counts) for counts in columns] == [1] * count
    assert all(len(table.splitlines()) >= 2 + len(NAMES) for table in tables)


def test_a_growing_log_has_a_table_where_it_was_measured(results: dict[str, Any]) -> None:
    table = render_costs({**results, "growth": GROWTH}).strip().split("\n\n")[-1].splitlines()
    assert table[0] == "| with 500 records in the log | milliseconds | ratio to 5 records |"
    assert table[2] == "| reading | 2.35 | 1.50 (1.25 to 1.75) |"
    assert len(table) == 2 + len(GROWTH)


def test_a_server_whose_processes_cannot_be_seen_has_no_cpu(results: dict[str, Any]) -> None:
    rows = [{**row, "server_milliseconds": None} for row in results["writing"]]
    assert render_costs({**results, "writing": rows}).count(" / ?") == len(NAMES) * len(WORKLOADS)


def test_what_the_log_refuses_is_called_refused(results: dict[str, Any]) -> None:
    rows = [{**row, "peak_mb": None} if row["way"] == "log" else row for row in results["memory"]]
    kept = [row for row in rows if row["way"] != "log, one aggregate"]
    (line,) = [one for one in render_costs({**results, "memory": kept}).splitlines() if "MB" in one]
    assert line.split(" | ")[1:] == ["refused", " |"]
