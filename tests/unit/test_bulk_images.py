"""Which tables' images are plain, and what is refused before a row is read."""

from __future__ import annotations

from typing import Any, cast

import pytest

from oplog.capture import bulk_images
from oplog.capture.bulk_images import LEAST_ROWS, split_images
from oplog.entry import OpType
from oplog.errors import EntryTooLargeError
from oplog.store.guard_state import Image
from oplog.type_binding import BoundType
from tests.bound import make_bound

pytestmark = pytest.mark.unit

COLUMNS = [("id", "integer"), ("team", "text")]
BOUND = {
    1: make_bound(COLUMNS, key=["id"], aggregate="item/{id}", name="item", oid=1),
    2: make_bound(COLUMNS, key=["id"], aggregate="all", name="thing", oid=2),
}


class Known:
    """A binding of these tables."""

    def find_relation(self, oid: int) -> BoundType:
        return BOUND[oid]


def split(*images: Image) -> Any:
    return split_images(images, binding=cast("Any", Known()), changed=())


def insert(oid: int, rows: int) -> Image:
    return Image(oid, "I", rows, kept=["id"], old_rows=None, new_rows=[["5"]] * rows, changed=[])


def number(image: Image) -> Image:
    assert image.new_rows is not None
    image.new_rows = [[str(n)] for n in range(image.rows)]
    return image


def test_few_rows_are_left_to_the_general_way() -> None:
    few = number(insert(1, LEAST_ROWS - 1))
    assert split(few) == ([], [few])
    (rows,), rest = split(number(insert(1, LEAST_ROWS)))
    assert (len(rows), rows.kind, rows.written, rest) == (
        LEAST_ROWS,
        OpType.CREATE,
        ("id", "team"),
        [],
    )
    assert (rows.aggregates[7], rows.creates) == ("item/7", True)


def test_tables_are_judged_each_by_itself() -> None:
    twice, once = insert(1, LEAST_ROWS), number(insert(2, LEAST_ROWS))
    (rows,), rest = split(twice, once)
    assert (rows.bound, rest) == (BOUND[2], [twice])
    assert set(rows.aggregates) == {"all"}


def test_images_that_lack_a_column_are_left_to_the_general_way() -> None:
    image = number(insert(1, LEAST_ROWS))
    image.kept = ["team"]
    assert split(image) == ([], [image])


def test_more_aggregates_than_a_record_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_images, "MAX_AGGREGATES", LEAST_ROWS)
    with pytest.raises(EntryTooLargeError, match=f"changes {LEAST_ROWS + 1} rows of table"):
        split(number(insert(1, LEAST_ROWS)), number(insert(1, 1)))
    bulk, _ = split(number(insert(1, LEAST_ROWS)), insert(2, LEAST_ROWS + 1))
    assert len(bulk) == 1
