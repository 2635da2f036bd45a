"""Runs: the same kind of effect on many rows of one type, written column by column.

A row in a run costs its values alone, and no Python object when it is encoded. The columns are
those of the derived message, each `repeated`, with NULLs left out and named beside. Types with a
message of the application's own have no runs: its rows stay readable with that message.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise, repeat
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import OpType
from oplog.errors import DecodeError, EntryError
from oplog.payload.block import RowKey
from oplog.payload.effect import Effect
from oplog.payload.shape import DERIVED, FIELD_TYPES, Column, Shape
from oplog.value import Wire

LEAST_ROWS: Final = 4
"""From this many rows on a run is smaller than its operations."""
MAX_RUN_ROWS: Final = 131_072
"""Most rows in an entry's runs. Without this limit 16 MiB of NULLs would decode to many millions
of Python objects."""
_KINDS = {kind.value: kind for kind in OpType}


def split_runs(effects: Sequence[Effect]) -> Iterator[tuple[Sequence[Effect], bool]]:
    """The effects in parts, in their order, each with whether it can be a run."""
    if not effects:
        return
    start = taken = 0
    ends = [n for n, (a, b) in enumerate(pairwise(effects), 1) if not _alike(a, b)]
    for end in (*ends, len(effects)):
        part = effects[start:end]
        fits = len(part) >= LEAST_ROWS and taken + len(part) <= MAX_RUN_ROWS
        runs = fits and _is_runnable(effects[start]) and not any(None in one.key for one in part)
        taken += len(part) if runs else 0
        yield part, runs
        start = end


def _alike(before: Effect, after: Effect) -> bool:
    return (
        before.shape is after.shape
        and before.kind is after.kind
        and before.complete is after.complete
        and before.values.keys() == after.values.keys()
    )


def _is_runnable(effect: Effect) -> bool:
    shape = effect.shape
    return bool(shape.key_names) and shape.message_name.startswith(f"{DERIVED}.")


class RunCodec:
    """Encodes and decodes runs of one shape; work that depends on the shape is done once."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._columns = _make_class(shape)
        self._attributes = {column.name: _name(column) for column in shape.columns}

    # -- encoding -------------------------------------------------------------------------

    def encode(self, effects: Sequence[Effect], *, use: int) -> record_pb2.RowRun:
        """The run of effects that `split_runs` found to be one; `use` is the type's index.

        Raises `EntryError` for a value that does not fit its field.
        """
        first = effects[0]
        run = record_pb2.RowRun(
            kind=first.kind,  # type: ignore[arg-type]
            type=use,
            row_count=len(effects),
            complete=first.complete,
            first_ordinal=first.ordinal,
        )
        steps = [b.ordinal - a.ordinal for a, b in pairwise(effects)]
        if any(step != 1 for step in steps):
            run.ordinal_steps.extend(steps)
        if not self._holds_key(first.kind, complete=first.complete):
            columns = zip(*[effect.key for effect in effects], strict=True)
            run.keys = self._pack(dict(zip(self.shape.key_names, columns, strict=True)))
        if first.values:
            rows = [effect.values for effect in effects]
            names = list(first.values)
            if not first.complete:
                run.fields.extend([self.shape.by_name[name].number for name in names])
            run.values = self._pack_values(run, {n: [row[n] for row in rows] for n in names})
        return run

    @staticmethod
    def _holds_key(kind: OpType, *, complete: bool) -> bool:
        return complete and kind is OpType.CREATE

    def _pack_values(
        self, run: record_pb2.RowRun, columns: Mapping[str, Sequence[Wire | None]]
    ) -> bytes:
        known: dict[str, Sequence[Wire | None]] = {}
        for name, values in columns.items():
            known[name] = values
            if None in values:
                run.nulls.add(field=self.shape.by_name[name].number, rows=_write_bits(values))
                known[name] = [value for value in values if value is not None]
        return self._pack(known)

    def _pack(self, columns: Mapping[str, Sequence[Wire | None]]) -> bytes:
        packed = self._columns()
        try:
            for name, values in columns.items():
                getattr(packed, self._attributes[name]).extend(values)
            return packed.SerializeToString()
        except (TypeError, ValueError) as cause:
            raise EntryError(
                f"a value of type {self.shape.type_name!r} does not fit its field: {cause}",
                hint="register a new revision of the type, whose columns are those of the table",
            ) from cause

    # -- decoding -------------------------------------------------------------------------

    def decode(
        self, run: record_pb2.RowRun, *, keys: Collection[RowKey] | None = None
    ) -> list[Effect]:
        """The effects of a run, or only those on rows under one of `keys`.

        Raises `DecodeError` unless every column has a value or a NULL for each row.
        """
        kind = _KINDS.get(run.kind)
        if kind is None:
            raise self._damage(f"its kind is {run.kind}")
        if not run.row_count:
            raise self._damage("it has no row")
        columns = self._unpack_values(run)
        holder = columns
        if not self._holds_key(kind, complete=run.complete):
            holder = self._unpack(run, run.keys, dict.fromkeys(self.shape.key_names))
        key_columns = [holder[name] for name in self.shape.key_names]
        if not key_columns or any(None in column for column in key_columns):
            raise self._damage("a row has no key")
        chosen = zip(
            _list_ordinals(run, self._damage),
            zip(*key_columns, strict=True),
            zip(*columns.values(), strict=True) if columns else repeat(()),
            strict=False,
        )
        names = tuple(columns)
        return [
            Effect(
                kind,
                self.shape,
                key,
                dict(zip(names, row, strict=True)),
                complete=run.complete,
                ordinal=ordinal,
            )
            for ordinal, key, row in chosen
            if keys is None or key in keys
        ]

    def _unpack_values(self, run: record_pb2.RowRun) -> dict[str, Sequence[Wire | None]]:
        if run.complete:
            if run.fields:
                raise self._damage("it is complete and names fields")
            names = self.shape.names
        else:
            names = tuple([self._find(number).name for number in run.fields])
        nulls = {self._find(entry.field).name: entry.rows for entry in run.nulls}
        if len(set(names)) != len(names) or not nulls.keys() <= set(names):
            raise self._damage("its fields are not each named once")
        return self._unpack(run, run.values, {name: nulls.get(name) for name in names})

    def _unpack(
        self, run: record_pb2.RowRun, data: bytes, nulls: Mapping[str, bytes | None]
    ) -> dict[str, Sequence[Wire | None]]:
        """Columns by name; `nulls` has the bits of each column that has any."""
        try:
            packed: Any = self._columns.FromString(data)
        except message.DecodeError as cause:
            raise self._damage("its columns cannot be parsed") from cause
        expected = {self._attributes[name] for name in nulls}
        if not expected.issuperset(field.name for field, _ in packed.ListFields()):
            raise self._damage("it has columns that it does not name")
        columns: dict[str, Sequence[Wire | None]] = {}
        for name, bits in nulls.items():
            values: Sequence[Wire | None] = list(getattr(packed, self._attributes[name]))
            if bits is not None:
                values = self._fill(values, bits, row_count=run.row_count)
            if len(values) != run.row_count:
                raise self._damage(f"it claims {run.row_count} rows but has {len(values)}")
            columns[name] = values
        return columns

    def _fill(
        self, values: Sequence[Wire | None], bits: bytes, *, row_count: int
    ) -> list[Wire | None]:
        number = int.from_bytes(bits, "little")
        if len(bits) != (row_count + 7) // 8 or number >> row_count:
            raise self._damage(f"it claims {row_count} rows and has bits for others")
        if row_count - number.bit_count() != len(values):
            raise self._damage("it has values where it has NULL")
        given = iter(values)
        flags = f"{number:0{row_count}b}"[::-1]
        return [None if flag == "1" else next(given) for flag in flags]

    def _find(self, number: int) -> Column:
        column = self.shape.by_number.get(number)
        if column is None:
            raise self._damage(f"it has field {number}, which the type has not")
        return column

    def _damage(self, why: str) -> DecodeError:
        return DecodeError(
            f"a run of rows of type {self.shape.type_name!r} revision {self.shape.revision} "
            f"cannot be read: {why}",
            hint="the entry is damaged or written by a newer library; upgrade and run verify",
        )


def check_run_rows(counts: Sequence[int]) -> None:
    """Raise `DecodeError` for an entry whose runs claim more rows than any entry has."""
    total = sum(counts)
    if total > MAX_RUN_ROWS:
        raise DecodeError(
            f"an entry's runs claim {total} rows; the limit is {MAX_RUN_ROWS}",
            hint="the entry is damaged or written by a newer library; upgrade and run verify",
        )


def _list_ordinals(run: record_pb2.RowRun, damage: Any) -> Sequence[int]:
    first = run.first_ordinal
    if not run.ordinal_steps:
        return range(first, first + run.row_count)
    if len(run.ordinal_steps) != run.row_count - 1:
        raise damage("it has not one step for each row but the first")
    ordinals = list(accumulate(chain([first], run.ordinal_steps)))
    if min(ordinals) < 0:
        raise damage("an ordinal is negative")
    return ordinals


def _write_bits(values: Sequence[Wire | None]) -> bytes:
    flags = "".join(["1" if value is None else "0" for value in reversed(values)])
    return int(flags, 2).to_bytes((len(values) + 7) // 8, "little")


def _name(column: Column) -> str:
    # Not the column's own field: a name may hide a method of the message.
    return f"column_{column.number}"


def _make_class(shape: Shape) -> type[message.Message]:
    file = descriptor_pb2.FileDescriptorProto(
        name="columns.proto", package="oplog.columns", syntax="proto3"
    )
    described = file.message_type.add(name="Columns")
    for column in shape.columns:
        described.field.add(
            name=_name(column),
            number=column.number,
            type=FIELD_TYPES[column.kind],
            label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("oplog.columns.Columns"))
