"""When a snapshot is due, and when layers are merged."""

from __future__ import annotations

from datetime import timedelta

import pytest

from oplog.archive.format.manifest import ChunkRef, Dataset
from oplog.errors import ConfigurationError
from oplog.snapshot.policy import MAX_KEPT_LAYERS, SnapshotPolicy, is_merge_due

pytestmark = pytest.mark.unit

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("policy", "records", "age", "due"),
    [
        (SnapshotPolicy(), 0, None, False),
        (SnapshotPolicy(), 1, None, True),
        (SnapshotPolicy(records=10, hours=2), 9, HOUR, False),
        (SnapshotPolicy(records=10, hours=2), 10, timedelta(0), True),
        (SnapshotPolicy(records=10, hours=2), 1, 2 * HOUR, True),
        (SnapshotPolicy(records=10, hours=2), 0, 9 * HOUR, False),
        (SnapshotPolicy(records=None, hours=2), 10**9, HOUR, False),
        (SnapshotPolicy(records=10, hours=None), 9, 999 * HOUR, False),
        (SnapshotPolicy(records=None, hours=None), 9, None, False),
    ],
)
def test_due(policy: SnapshotPolicy, records: int, age: timedelta | None, *, due: bool) -> None:
    assert policy.is_due(records=records, age=age) is due


@pytest.mark.parametrize("values", [{"records": 0}, {"hours": -1.0}, {"hours": float("nan")}])
def test_numbers_that_are_not_positive_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="cannot say when"):
        SnapshotPolicy(**values)  # type: ignore[arg-type]


def make_dataset(rows: int, *layers: int) -> Dataset:
    """A base of ten bytes a row, and layers of so many bytes."""
    base = (ChunkRef("", rows, 0, 10 * rows, 20 * rows),) if rows else ()
    made = tuple((ChunkRef("", 1, 0, size, size),) for size in layers)
    return Dataset("s", "t", (), (), (), (), rows, base, made)


@pytest.mark.parametrize(
    ("dataset", "changed", "due"),
    [
        (make_dataset(100), 30, False),
        (make_dataset(100), 31, True),
        (make_dataset(100, 200), 10, False),
        (make_dataset(100, 200), 11, True),
        (make_dataset(100, 150, 151), 0, True),
        (make_dataset(0), 1, True),
        (make_dataset(10**6, *[1] * (MAX_KEPT_LAYERS - 1)), 1, False),
        (make_dataset(10**6, *[1] * MAX_KEPT_LAYERS), 1, True),
    ],
)
def test_merging(dataset: Dataset, changed: int, *, due: bool) -> None:
    assert is_merge_due(dataset, changed=changed) is due
