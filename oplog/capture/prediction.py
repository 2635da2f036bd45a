"""The stored values of parameters, as far as they are certain, for many rows at once. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oplog.capture.statement_plan import BoundColumn
from oplog.value import UNSURE, Unsure, Wire


def predict_columns(
    columns: Sequence[BoundColumn],
    parameters: Sequence[Mapping[str, Any]],
    foreign: Collection[type],
) -> tuple[list[str], list[Sequence[Wire | Unsure | None]]]:
    """Names of columns, and the stored values of each, for all rows, as far as they are certain.

    Column by column: a thousand rows take half the time that they take one by one.
    """
    predicted: list[Sequence[Wire | Unsure | None]] = []
    for column in columns:
        name, to_wire = column.parameter, column.to_wire
        sent = [one[name] for one in parameters]
        predicted.append(
            [
                None
                if value is None
                else UNSURE
                if foreign and type(value) in foreign
                else to_wire(value)
                for value in sent
            ]
        )
    return [column.name for column in columns], predicted


def list_rows(
    names: Sequence[str], columns: Sequence[Sequence[Wire | Unsure | None]], *, count: int = 0
) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """The certain values of each row, and the names of the others. A later column counts.

    `count` is how many rows there are if there is no column.
    """
    if not columns:
        return [({}, ()) for _ in range(count)]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if not any(UNSURE in column for column in columns):
        return [(row, ()) for row in rows]
    return [
        (
            {name: value for name, value in row.items() if value is not UNSURE},
            tuple([name for name, value in row.items() if value is UNSURE]),
        )
        for row in rows
    ]
