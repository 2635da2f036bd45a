"""Encodes and decodes rows of one shape: messages of its type, and operations, one by one.

Three cases must stay apart on the wire: a column set to NULL, a column set to its protobuf
default, and a column that was not written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any

from google.protobuf import message

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import OpType
from oplog.errors import DecodeError, EntryError
from oplog.payload.effect import Effect
from oplog.payload.field_count import check_columns
from oplog.payload.shape import Column, Shape
from oplog.value import Wire

_KINDS = {kind.value: kind for kind in OpType}


class RowCodec:
    """Encodes and decodes rows of one shape; work that depends on the shape is done once."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._build: Callable[..., message.Message] = shape.message_class
        self._parse = shape.message_class.FromString  # type: ignore[attr-defined]
        self._fields = {c.name: c.field for c in shape.columns}
        self._renamed = any(c.name != c.field for c in shape.columns)
        self._numbers = {c.name: c.number for c in shape.columns}
        descriptor = shape.message_class.DESCRIPTOR  # type: ignore[attr-defined]
        presence = {f.number: f.has_presence for f in descriptor.fields}
        self._without_presence = tuple(c for c in shape.columns if not presence[c.number])
        getter = attrgetter(*(c.field for c in shape.columns))
        single = len(shape.columns) == 1
        self._read_all: Callable[[Any], tuple[Any, ...]] = (
            (lambda row: (getter(row),)) if single else getter
        )
        self._place = {c.number: n for n, c in enumerate(shape.columns)}
        places = [n for n, c in enumerate(shape.columns) if c.primary_key]
        pick = itemgetter(*places) if places else _no_key
        self._pick_key: Callable[[Sequence[Any]], tuple[Any, ...]] = (
            (lambda values: (pick(values),)) if len(places) == 1 else pick
        )

    # -- encoding -------------------------------------------------------------------------

    def add_operation(
        self, payload: record_pb2.Payload, effect: Effect, *, use: int, first: int
    ) -> None:
        """Add the operation of an effect to a part's payload.

        `use` is the type's index, `first` the number of the part's first aggregate. Raises
        `EntryError` for a value that does not fit its field.
        """
        # Field by field: arguments of `add` take longer.
        operation = payload.operations.add()
        operation.kind = effect.kind  # type: ignore[assignment]
        operation.type = use
        operation.ordinal = effect.ordinal
        operation.aggregate = effect.place - first
        if effect.complete:
            operation.complete = True
        if effect.kind is not OpType.CREATE:
            names = self.shape.key_names
            operation.key = self.encode_row(dict(zip(names, effect.key, strict=True)))[0]
        if effect.values:
            operation.row, nulls, defaults = self.encode_row(effect.values)
            if nulls:
                operation.null_fields.extend(nulls)
            if defaults:
                operation.default_fields.extend(defaults)

    def encode_row(self, values: Mapping[str, Wire | None]) -> tuple[bytes, list[int], list[int]]:
        """Return the message, the numbers of NULL fields, and those of defaults.

        The last are written columns that hold their protobuf default in a field without
        presence: protobuf leaves them out, so they would be read as not written.
        """
        written = values
        if self._renamed:
            fields = self._fields
            written = {fields[name]: value for name, value in values.items()}
        try:
            # A field that is given None is not set.
            row = self._build(**written).SerializeToString()
        except (TypeError, ValueError) as cause:
            raise EntryError(
                f"a value of type {self.shape.type_name!r} does not fit its message: {cause}",
                hint="widen the field in the .proto file and register a new revision",
            ) from cause
        nulls: list[int] = []
        if None in values.values():
            nulls = [self._numbers[name] for name, value in values.items() if value is None]
        if not self._without_presence:
            return row, nulls, []
        defaults = [
            c.number
            for c in self._without_presence
            if not (value := values.get(c.name)) and value is not None
        ]
        return row, nulls, defaults

    # -- decoding -------------------------------------------------------------------------

    def decode_operation(self, operation: record_pb2.Operation, *, place: int) -> Effect:
        """The effect of an operation on this shape; `place` is its aggregate's number.

        Raises `DecodeError` for bytes that `encode_operation` does not give.
        """
        kind = _KINDS.get(operation.kind)
        if kind is None:
            raise DecodeError(
                f"an operation on {self.shape.type_name!r} has kind {operation.kind}",
                hint="the record is damaged or written by a newer library; upgrade and run verify",
            )
        for numbers in (operation.null_fields, operation.default_fields):
            check_columns(len(numbers), len(self.shape.columns))
        values = self.decode_row(
            operation.row,
            operation.null_fields,
            defaults=operation.default_fields,
            complete=operation.complete,
        )
        names = self.shape.key_names
        try:
            if kind is OpType.CREATE:
                key = tuple([values[name] for name in names])
            else:
                row = self.decode_row(operation.key, (), defaults=(), complete=False)
                key = tuple([row.get(name, self._default_of(name)) for name in names])
        except KeyError as cause:
            raise DecodeError(
                f"an operation on {self.shape.type_name!r} has no value for key column {cause}",
                hint="the record is damaged; run verify",
            ) from cause
        return Effect(
            kind,
            self.shape,
            key,
            values,
            complete=operation.complete,
            ordinal=operation.ordinal,
            place=place,
        )

    def decode_create(
        self, row: bytes, nulls: Sequence[int], *, ordinal: int, place: int
    ) -> Effect:
        """Decode a create that logs every column: the fast path of replay, taken most often."""
        try:
            values = self._read_all(self._parse(row))
        except message.DecodeError as cause:
            raise self._damaged_row() from cause
        if nulls:
            check_columns(len(nulls), len(self.shape.columns))
            known = list(values)
            for number in nulls:
                known[self._find_place(number)] = None
            values = tuple(known)
        named = dict(zip(self.shape.names, values, strict=True))
        return Effect(
            OpType.CREATE,
            self.shape,
            self._pick_key(values),
            named,
            complete=True,
            ordinal=ordinal,
            place=place,
        )

    def decode_row(
        self, row: bytes, nulls: Sequence[int], *, defaults: Sequence[int], complete: bool
    ) -> dict[str, Wire | None]:
        """Return the written columns by name; the inverse of `encode_row`."""
        try:
            parsed = self._parse(row)
        except message.DecodeError as cause:
            raise self._damaged_row() from cause
        if complete:
            values = list(self._read_all(parsed))
            for number in nulls:
                values[self._find_place(number)] = None
            return dict(zip(self.shape.names, values, strict=True))
        written: dict[str, Wire | None] = {}
        for descriptor, value in parsed.ListFields():
            written[self._find_column(descriptor.number).name] = value
        for number in defaults:
            column = self._find_column(number)
            written[column.name] = getattr(parsed, column.field)
        for number in nulls:
            written[self._find_column(number).name] = None
        return written

    def _find_place(self, number: int) -> int:
        place = self._place.get(number)
        if place is None:
            raise self._unknown_field(number)
        return place

    def _find_column(self, number: int) -> Column:
        column = self.shape.by_number.get(number)
        if column is None:
            raise self._unknown_field(number)
        return column

    def _default_of(self, name: str) -> Wire:
        # A key field without presence is left out of the wire when it holds the type's default.
        column = self.shape.by_name[name]
        return getattr(self._build(), column.field)  # type: ignore[no-any-return]

    def _damaged_row(self) -> DecodeError:
        return DecodeError(
            f"a row of type {self.shape.type_name!r} cannot be parsed",
            hint="the stored type does not match the bytes; run verify",
        )

    def _unknown_field(self, number: int) -> DecodeError:
        return DecodeError(
            f"field {number} is not in type {self.shape.type_name!r} revision "
            f"{self.shape.revision}",
            hint="the record is damaged or its type row was altered; run verify",
        )


def _no_key(_values: Sequence[Any]) -> tuple[Any, ...]:
    return ()
