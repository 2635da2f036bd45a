"""Finds the tables of whose rows a guard's images alone tell all but the values.

The usual statement on many rows touches each of them once and leaves its key and its aggregate
as they were. What it comes to is known by its images then. Everything else goes the way of
`oplog.capture.merge`, which this has to agree with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain

from oplog.binding import Binding
from oplog.capture.bulk import BulkRows
from oplog.capture.grouping import has_own_aggregate, name_aggregate
from oplog.capture.merge import list_group_names
from oplog.capture.row_change import Key
from oplog.entry import MAX_AGGREGATES, OpType
from oplog.errors import EntryTooLargeError
from oplog.store.guard_state import Image
from oplog.type_binding import BoundType
from oplog.value import Wire

LEAST_ROWS = 1000
"""From so many rows of a table on. Fewer are told as fast with an object for each."""
_KINDS = {"I": OpType.CREATE, "U": OpType.UPDATE, "D": OpType.DELETE}


def split_images(
    images: Iterable[Image], *, binding: Binding, changed: Collection[str]
) -> tuple[list[BulkRows], list[Image]]:
    """The tables whose images are plain, and the images of all other tables.

    `changed` names the types with announced changes. Raises `EntryTooLargeError` for more
    aggregates than a record can have, before their rows are read.
    """
    by_relation: dict[int, list[Image]] = {}
    for image in images:
        by_relation.setdefault(image.relation, []).append(image)
    bulk: list[BulkRows] = []
    rest: list[Image] = []
    for relation, ones in by_relation.items():
        found: list[BulkRows] | None = None
        if sum([image.rows for image in ones]) >= LEAST_ROWS:
            bound = binding.find_relation(relation)
            if bound.shape.type_name not in changed:
                _check_count(bound, ones)
                found = _join_images(bound, ones)
        if found is None:
            rest += ones
        else:
            bulk += found
    return bulk, rest


def _check_count(bound: BoundType, images: Sequence[Image]) -> None:
    if len({image.operation for image in images}) > 1 or images[0].operation == "U":
        # A row may have been touched more than once.
        return
    count = sum([image.rows for image in images])
    if count > MAX_AGGREGATES and has_own_aggregate(bound):
        raise EntryTooLargeError(
            f"the transaction changes {count} rows of table {bound.live.qualified}, each of them "
            f"an aggregate; the limit is {MAX_AGGREGATES} aggregates",
            hint="write fewer rows in one transaction, or use a coarser aggregate template",
        )


def _join_images(bound: BoundType, images: Sequence[Image]) -> list[BulkRows] | None:
    """The rows of one table; None if what happened to them is not that plain."""
    names = (*bound.shape.key_names, *list_group_names(bound))
    alike: dict[tuple[str, tuple[str, ...]], list[Image]] = {}
    for image in images:
        written = _list_written(bound, image)
        moved = image.operation == "U" and image.old_rows is not None
        if moved or (not written and image.operation == "U") or not set(names) <= set(image.kept):
            return None
        alike.setdefault((image.operation, written), []).append(image)
    found = []
    for (operation, written), ones in alike.items():
        columns = [_read_column(bound, ones, name) for name in names]
        found.append(_make_rows(bound, _KINDS[operation], written=written, columns=columns))
    count = sum([len(rows) for rows in found])
    return found if len(set(chain(*[_list_keys(rows) for rows in found]))) == count else None


def _list_written(bound: BoundType, image: Image) -> tuple[str, ...]:
    """Columns that the operation on a row of the image has."""
    shape = bound.shape
    if image.operation == "U":
        return tuple([n for n in shape.names if n in image.changed and n not in shape.key_names])
    return shape.names if image.operation == "I" else ()


def _read_column(bound: BoundType, images: Sequence[Image], name: str) -> list[Wire | None]:
    parse = bound.shape.codecs[name].from_text
    column: list[Wire | None] = []
    for image in images:
        place = list(image.kept).index(name)
        rows = image.old_rows if image.operation == "D" else image.new_rows
        texts = [row[place] for row in rows or ()]
        column += [None if text is None else parse(text) for text in texts]
    return column


def _make_rows(
    bound: BoundType,
    kind: OpType,
    *,
    written: tuple[str, ...],
    columns: list[list[Wire | None]],
) -> BulkRows:
    count = len(bound.shape.key_names)
    creates = kind is OpType.CREATE and has_own_aggregate(bound)
    rows = BulkRows(
        bound,
        kind,
        written=written,
        keys=columns[:count],
        groups=columns[count:],
        aggregates=(),
        creates=creates,
    )
    if not bound.template.columns:
        rows.aggregates = [bound.template.constant] * len(rows)
    elif bound.affixes is not None and set(map(type, rows.keys[0])) == {int}:
        # What `name_aggregate` does, in a tenth of the time.
        before, after = bound.affixes
        rows.aggregates = [f"{before}{part!s}{after}" for part in rows.keys[0]]
    else:
        names = list_group_names(bound)
        keys = zip(*rows.keys, strict=True)
        groups = zip(*rows.groups, strict=True) if names else [()] * len(rows)
        rows.aggregates = [
            name_aggregate(bound, key, dict(zip(names, group, strict=True)))
            for key, group in zip(keys, groups, strict=True)
        ]
    return rows


def _list_keys(rows: BulkRows) -> Iterable[Wire | Key | None]:
    return rows.keys[0] if len(rows.keys) == 1 else zip(*rows.keys, strict=True)
