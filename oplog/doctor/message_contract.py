"""Compares an application's own protobuf message with those that its log has. Pure.

Readers find a column by its field number. A number that moved to another column would give them
that column's values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oplog.catalog import DeclaredType
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveTable
from oplog.postgres.type_evolution import follow_names


def judge_message(
    declared: DeclaredType, stored: Sequence[Shape], live: LiveTable
) -> Iterator[tuple[str, str]]:
    """Columns, each with what the message of the models changes for readers of it.

    `stored` are all revisions of the type, `live` is its table.
    """
    if declared.message_class is None:
        return
    newest = stored[-1]
    called = follow_names(newest, live)
    fields = {field.name: field.number for field in declared.message_class.DESCRIPTOR.fields}
    logged = {column.name for column in declared.list_columns()}
    kept = set()
    for column in newest.columns:
        name = called.get(column.name, column.name)
        if name not in logged:
            # Dropped, or left out of the models: that is judged for every type.
            continue
        kept.add(name)
        number = fields.get(name)
        if number is None:
            text = f"the message has no field for column {name}, which has number {column.number}"
            yield name, f"{text} in revision {newest.revision}"
        elif number != column.number:
            text = f"column {name} has field number {number} in the message"
            yield name, f"{text} and {column.number} in revision {newest.revision}"
    former = {
        column.number: (column.name, shape.revision) for shape in stored for column in shape.columns
    }
    for name in sorted(logged - kept):
        used = former.get(fields.get(name, 0))
        if used is not None:
            text = f"column {name} has field number {fields[name]} in the message"
            yield name, f"{text}, which was that of column {used[0]} in revision {used[1]}"
