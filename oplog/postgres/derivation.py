"""Derives from a model and its live table the revision under which rows are logged. Pure.

A column that cannot be logged exactly is refused by name, before the first row is written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from oplog.catalog import DeclaredType
from oplog.errors import NotCapturableError, SchemaDriftError
from oplog.payload.column_numbers import is_same_table
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.registration import register_shape
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveColumn, LiveTable
from oplog.value import Kind, check_parts, codec_for


def resolve_shape(
    declared: DeclaredType, live: LiveTable, *, stored: list[Shape], type_name: str = ""
) -> Shape:
    """The revision under which rows of this table are logged now.

    `type_name` is the log's name of the type, if it is not the declared one. Where the application
    compiled the message itself and that lacks columns, a stored revision that has them is used.
    """
    type_name = type_name or declared.type_name
    if declared.model is not None:
        live = live.spell_types()
    columns = _list_columns(declared, live)
    if declared.message_class is None:
        return derive_shape(
            type_name,
            columns,
            schema=live.schema,
            table=live.name,
            aggregate=declared.template.text,
            excluded=declared.excluded,
            stored=stored,
            numbers=live.numbers,
        )
    fields = {f.name for f in declared.message_class.DESCRIPTOR.fields}
    missing = [c.name for c in columns if c.name not in fields]
    if missing:
        newer = find_fitting(columns, live, stored)
        if newer is not None:
            return newer
        raise SchemaDriftError(
            f"table {live.schema}.{live.name} has columns that message "
            f"{declared.message_class.DESCRIPTOR.full_name} has no field for: "
            f"{', '.join(missing)}",
            hint="add the fields and raise the revision, or exclude the columns with a reason",
        )
    return register_shape(
        type_name,
        columns,
        revision=declared.revision or 1,
        schema=live.schema,
        table=live.name,
        aggregate=declared.template.text,
        excluded=declared.excluded,
        message_class=declared.message_class,
        stored=stored,
        numbers=live.numbers,
    )


def find_fitting(
    columns: Sequence[DeclaredColumn], live: LiveTable, stored: Sequence[Shape]
) -> Shape | None:
    """The newest stored revision, if it has these very columns of this table.

    A process of the next version has stored it: until this one is replaced, it writes that, too.
    """
    if not stored:
        return None
    newest = stored[-1]
    found = {(c.name, c.pg_type, c.primary_key) for c in newest.columns}
    fits = found == {(c.name, c.pg_type, c.primary_key) for c in columns} and (
        newest.schema,
        newest.table,
    ) == (live.schema, live.name)
    return newest if fits and is_same_table(newest.numbers, (live.numbers,), newest.names) else None


def _list_columns(declared: DeclaredType, live: LiveTable) -> list[DeclaredColumn]:
    """The live columns that are logged; refuses those that cannot be, and missing ones."""
    names = {column.name for column in live.columns}
    for column in declared.list_columns():
        if column.name not in names:
            raise SchemaDriftError(
                f"column {live.schema}.{live.name}.{column.name} is in the model and not in "
                "the database",
                hint="run the migrations before this version of the application; if a migration "
                "has renamed or dropped the column, deploy the version that goes with it",
            )
    return list_live_columns(live, declared.excluded)


def list_live_columns(live: LiveTable, excluded: Collection[str]) -> list[DeclaredColumn]:
    """The columns of a table that are logged; `NotCapturableError` for one that cannot be."""
    columns = []
    for found in live.columns:
        # Columns that the model does not have yet are logged as well: the row is the truth.
        if found.name in excluded:
            continue
        if found.primary_key:
            _check_key(live, found)
        if found.generated:
            continue
        columns.append(_declare_column(live, found))
    return columns


def _declare_column(live: LiveTable, column: LiveColumn) -> DeclaredColumn:
    try:
        check_parts(column.pg_type, column.parts)
        kind: Kind = codec_for(column.pg_type, category=column.category).kind
    except NotCapturableError as cause:
        raise _refuse(live, column, str(cause.args[0]), hint=cause.hint) from cause
    if column.cast_to_text:
        raise _refuse(
            live,
            column,
            f"type {column.pg_type} cannot be logged exactly: as text it is what "
            f"{column.cast_to_text} makes of it",
            hint="drop the cast to text, or leave the column out with exclude={...}",
        )
    return DeclaredColumn(
        name=column.name,
        pg_type=column.pg_type,
        kind=kind,
        primary_key=column.primary_key,
        category=column.category,
    )


def _check_key(live: LiveTable, column: LiveColumn) -> None:
    if column.generated:
        raise _refuse(
            live,
            column,
            "it is part of the primary key and computed: what is not written is not logged",
            hint="give the table a key that is written",
        )
    if column.blind:
        raise _refuse(
            live,
            column,
            "it is part of the primary key and its collation calls texts equal that differ",
            hint='give the column a deterministic collation, such as COLLATE "C"',
        )


def _refuse(live: LiveTable, column: LiveColumn, why: str, *, hint: str) -> NotCapturableError:
    return NotCapturableError(f"column {live.schema}.{live.name}.{column.name}: {why}", hint=hint)
