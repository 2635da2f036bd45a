"""Runs: the same kind of effect on many rows of one type, written column by column.

A row in a run costs its values alone, and no Python object when it is encoded. The columns are
those of the derived message, each `repeated`, with NULLs left out and named beside. Types with a
message of the application's own have no runs: its rows stay readable with that message.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import sub
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import OpType
from oplog.errors import DecodeError, EntryError
from oplog.payload.block import RowKey
from oplog.payload.effect import Effect
from oplog.payload.field_count import check_columns
from oplog.payload.shape import DERIVED, FIELD_TYPES, Column, Shape
from oplog.value import Wire

LEAST_ROWS: Final = 4
"""From this many rows on a run is smaller than its operations."""
MAX_RUN_ROWS: Final = 131_072
"""Most rows in a part's runs. Without this limit 16 MiB of NULLs would decode to many millions
of Python objects."""
MAX_NUMBER: Final = 2**32 - 1
"""Largest ordinal, and largest number of an aggregate in a part: what operations can hold."""
_KINDS = {kind.value: kind for kind in OpType}


def split_runs(effects: Sequence[Effect]) -> list[tuple[Sequence[Effect], bool]]:
    """The effects by what they have in common, each group with whether it can be a run.

    Effects of one kind on one shape that write the same columns are one group, wherever they
    stand. The order within a group is that of `effects`.
    """
    if len(effects) < LEAST_ROWS:
        return [((effect,), False) for effect in effects]
    groups: dict[tuple[object, ...], list[Effect]] = {}
    shape, kind, complete = None, None, False
    for effect in effects:
        # Complete rows next to one another are alike most often, and are told so with less.
        if not (complete and effect.complete and effect.kind is kind and effect.shape is shape):
            shape, kind, complete = effect.shape, effect.kind, effect.complete
            # Columns of complete rows are those of the shape, in whatever order.
            columns = None if complete else tuple(effect.values)
            group = groups.setdefault((id(shape), kind, columns), [])
        group.append(effect)
    taken = 0
    split: list[tuple[Sequence[Effect], bool]] = []
    for group in groups.values():
        fits = LEAST_ROWS <= len(group) <= MAX_RUN_ROWS - taken
        runs = fits and _is_runnable(group)
        taken += len(group) if runs else 0
        split.append((group, runs))
    return split


def _is_runnable(group: Sequence[Effect]) -> bool:
    if not _may_run(group[0].shape):
        return False
    return not any(None in column for column in zip(*[effect.key for effect in group], strict=True))


def _may_run(shape: Shape) -> bool:
    return bool(shape.key_names) and shape.message_name.startswith(f"{DERIVED}.")


@dataclass(slots=True)
class RunRows:
    """The same kind of effect on rows of one shape, column by column.

    What is of each row has one item for each: `ordinals`, `places`, and in `keys` and `values`
    every column. `names` are the columns of `values`. Fields mean what they mean in `Effect`.
    """

    kind: OpType
    shape: Shape
    complete: bool
    ordinals: Sequence[int]
    places: Sequence[int]
    keys: Sequence[Sequence[Wire | None]]
    names: Sequence[str]
    values: Sequence[Sequence[Wire | None]]

    def __len__(self) -> int:
        return len(self.ordinals)

    @property
    def fits_run(self) -> bool:
        """They are a run, and not operations; a key is never NULL."""
        return LEAST_ROWS <= len(self) <= MAX_RUN_ROWS and _may_run(self.shape)

    def take(self, count: int) -> RunRows:
        """The first `count` rows."""
        return RunRows(
            self.kind,
            self.shape,
            complete=self.complete,
            ordinals=self.ordinals[:count],
            places=self.places[:count],
            keys=[column[:count] for column in self.keys],
            names=self.names,
            values=[column[:count] for column in self.values],
        )

    def list_effects(self) -> list[Effect]:
        """The same as effects, one for each row."""
        rows = zip(*self.values, strict=True) if self.names else repeat(())
        return [
            Effect(
                self.kind,
                self.shape,
                key,
                dict(zip(self.names, row, strict=True)),
                complete=self.complete,
                ordinal=ordinal,
                place=place,
            )
            for ordinal, place, key, row in zip(
                self.ordinals, self.places, zip(*self.keys, strict=True), rows, strict=False
            )
        ]


class RunCodec:
    """Encodes and decodes runs of one shape; work that depends on the shape is done once."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._columns = _make_class(shape)
        self._attributes = {column.name: _name(column) for column in shape.columns}

    # -- encoding -------------------------------------------------------------------------

    def encode(self, effects: Sequence[Effect], *, use: int, first: int) -> record_pb2.RowRun:
        """The run of effects that `split_runs` found to be one; `use` is the type's index.

        `first` is the number of the part's first aggregate. Raises `EntryError` for a value
        that does not fit its field.
        """
        one = effects[0]
        names = list(one.values)
        rows = [effect.values for effect in effects]
        return self.encode_rows(
            RunRows(
                kind=one.kind,
                shape=self.shape,
                complete=one.complete,
                ordinals=[effect.ordinal for effect in effects],
                places=[effect.place for effect in effects],
                keys=list(zip(*[effect.key for effect in effects], strict=True)),
                names=names,
                values=[[row[name] for row in rows] for name in names],
            ),
            use=use,
            first=first,
        )

    def encode_rows(self, rows: RunRows, *, use: int, first: int) -> record_pb2.RowRun:
        """The same of rows that are columns already."""
        ordinals, places = rows.ordinals, rows.places
        run = record_pb2.RowRun(
            kind=rows.kind,  # type: ignore[arg-type]
            type=use,
            row_count=len(ordinals),
            complete=rows.complete,
            first_ordinal=ordinals[0],
            first_aggregate=places[0] - first,
        )
        run.ordinal_steps.extend(_list_steps(ordinals))
        if places.count(places[0]) == len(places):
            run.one_aggregate = True
        else:
            run.aggregate_steps.extend(_list_steps(places))
        if not self._holds_key(rows.kind, complete=rows.complete):
            run.keys = self._pack(dict(zip(self.shape.key_names, rows.keys, strict=True)))
        if rows.names:
            if not rows.complete:
                run.fields.extend([self.shape.by_name[name].number for name in rows.names])
            run.values = self._pack_values(run, dict(zip(rows.names, rows.values, strict=True)))
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
        self, run: record_pb2.RowRun, *, first: int, keys: Collection[RowKey] | None
    ) -> list[Effect]:
        """The effects of a run, or only those on rows under one of `keys` if there are any.

        `first` is the number of the part's first aggregate. Raises `DecodeError` unless every
        column has a value or a NULL for each row, and every row its ordinal and its aggregate.
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
            self._count_on(
                run.first_ordinal, run.ordinal_steps, count=run.row_count, what="an ordinal"
            ),
            self._list_places(run, first),
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
                place=place,
            )
            for ordinal, place, key, row in chosen
            if keys is None or key in keys
        ]

    def _unpack_values(self, run: record_pb2.RowRun) -> dict[str, Sequence[Wire | None]]:
        for named in (run.fields, run.nulls):
            check_columns(len(named), len(self.shape.columns))
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
            held = getattr(packed, self._attributes[name])
            if len(held) > run.row_count:
                # Before they become a list of objects.
                raise self._damage(f"it claims {run.row_count} rows but has {len(held)}")
            values: Sequence[Wire | None] = list(held)
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

    def _list_places(self, run: record_pb2.RowRun, first: int) -> Iterable[int]:
        start, steps = run.first_aggregate, run.aggregate_steps
        if not run.one_aggregate:
            places = self._count_on(start, steps, count=run.row_count, what="an aggregate")
            return [first + place for place in places] if first else places
        if steps:
            raise self._damage("it is of one aggregate and has steps to others")
        return repeat(first + start)

    def _count_on(
        self, start: int, steps: Sequence[int], *, count: int, what: str
    ) -> Sequence[int]:
        """So many numbers from `start` on, each with its step from the one before, or with 1."""
        if not steps:
            numbers: Sequence[int] = range(start, start + count)
            lowest, highest = start, start + count - 1
        elif len(steps) == count - 1:
            numbers = list(accumulate(steps, initial=start))
            lowest, highest = min(numbers), max(numbers)
        else:
            raise self._damage(f"it has not one step to {what} for each row but the first")
        if lowest < 0 or highest > MAX_NUMBER:
            raise self._damage(f"{what} is out of range")
        return numbers

    def _find(self, number: int) -> Column:
        column = self.shape.by_number.get(number)
        if column is None:
            raise self._damage(f"it has field {number}, which the type has not")
        return column

    def _damage(self, why: str) -> DecodeError:
        return DecodeError(
            f"a run of rows of type {self.shape.type_name!r} revision {self.shape.revision} "
            f"cannot be read: {why}",
            hint="the record is damaged or written by a newer library; upgrade and run verify",
        )


def check_run_rows(counts: Sequence[int]) -> None:
    """Raise `DecodeError` for a part whose runs claim more rows than any part has."""
    total = sum(counts)
    if total > MAX_RUN_ROWS:
        raise DecodeError(
            f"a part's runs claim {total} rows; the limit is {MAX_RUN_ROWS}",
            hint="the record is damaged or written by a newer library; upgrade and run verify",
        )


def _list_steps(numbers: Sequence[int]) -> Sequence[int]:
    """What each number adds to the one before; empty if that is always 1."""
    steps = list(map(sub, numbers[1:], numbers))
    return () if steps.count(1) == len(steps) else steps


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
