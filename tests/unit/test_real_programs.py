"""What programs' own tests did without and with the log is read, compared and put in a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.programs import ALL
from tests.real.shipped_outcomes import compare_outcomes, count_outcomes, read_outcomes
from tests.real.tried import Tried, print_table

pytestmark = pytest.mark.unit

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest">
<testcase classname="a.T" name="one" time="1"/>
<testcase classname="a.T" name="two"><failure message="no">x</failure></testcase>
<testcase classname="a.T" name="three"><skipped message="why"/></testcase>
<testcase classname="a.T" name="four"><system-out>told</system-out></testcase>
<testcase classname="a.T" name="four"><error message="teardown">x</error></testcase>
</testsuite></testsuites>
"""


def test_outcomes_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    path.write_text(REPORT, encoding="utf-8")
    found = read_outcomes(path)
    assert found == {
        "a.T::one": "passed",
        "a.T::two": "failed",
        "a.T::three": "skipped",
        "a.T::four": "error",
    }
    assert count_outcomes(found) == "1 passed, 1 skipped, 1 failed, 1 error"
    assert count_outcomes({}) == ""


@pytest.mark.parametrize("text", [None, "", "<testsuites>"])
def test_a_run_without_a_report_has_no_outcomes(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "report.xml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="has no outcomes"):
        read_outcomes(path)


def test_only_what_ends_otherwise_is_told() -> None:
    without = {"a": "passed", "b": "failed", "c": "passed", "d": "skipped"}
    attached = {"a": "passed", "b": "failed", "c": "error", "e": "passed"}
    assert compare_outcomes(without, attached) == [
        "c: passed without the log, error with it",
        "d: skipped without the log, not run with it",
        "e: not run without the log, passed with it",
    ]
    assert compare_outcomes(without, without) == []


def test_a_table_has_a_row_for_each_program_that_was_run() -> None:
    good = Tried(
        "good", "1.0", "writes", 3, 40, "equal", "equal", "5 passed", "5 passed", notes=["a note"]
    )
    bad = Tried("bad", "2.0", "writes", 1, 2, "1 differences: x", "equal")
    absent = Tried("absent", skipped="cannot be fetched")
    text = print_table([good, bad, absent])
    lines = text.splitlines()
    row = "| good | 1.0 | writes | 3 | 40 | 5 passed | 5 passed | equal | equal |"
    assert row in lines
    assert "| bad | 2.0 | writes | 1 | 2 | - | - | **differs** | equal |" in lines
    assert "- verify: 1 differences: x" in lines
    assert "- a note" in lines
    assert "Skipped: absent: cannot be fetched" in lines
    assert not any(line.startswith("| absent") for line in lines)


@pytest.mark.parametrize(
    "changed",
    [
        {"verify": "1 differences"},
        {"replay": "t is missing"},
        {"differing": ["t"]},
        {"differences": ["t"]},
        {"broken": "Traceback"},
    ],
)
def test_what_the_log_must_not_do_is_a_failure(changed: dict[str, object]) -> None:
    assert not Tried("one", verify="equal", replay="equal").failed
    assert Tried("one", **{"verify": "equal", "replay": "equal", **changed}).failed  # type: ignore[arg-type]


def test_results_are_kept(tmp_path: Path) -> None:
    one = Tried("one", "1.0", notes=["a"], tables=3)
    one.save(tmp_path / "one.json")
    assert Tried.load(tmp_path / "one.json") == one


def test_each_program_has_its_work_or_tests() -> None:
    for program in ALL:
        path = Path(__file__).parents[1] / "real" / "works" / f"{program.module.split('.')[-1]}.py"
        assert path.is_file() == bool(program.work), program.name
        assert program.work or program.shipped
