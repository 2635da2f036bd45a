"""Encodes row effects to payload bytes and decodes them.

Effects hold wire values: replay turns them into SQL text without making Python objects. Three
cases must stay apart on the wire: a column set to NULL, a column set to its protobuf default,
and a column that was not written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Protocol, TypeAlias

from google.protobuf import message

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import MAX_ENTRY_BYTES, OpType
from oplog.errors import DecodeError, EntryError, EntryTooLargeError
from oplog.payload.block import RowKey, check_total, order_columns, read_block
from oplog.payload.effect import Effect, effect_to_operation, operation_to_effect
from oplog.payload.row_run import RunCodec, check_run_rows, split_runs
from oplog.payload.shape import Column, Shape
from oplog.value import Wire

__all__ = [
    "Effect",
    "FindKeys",
    "PayloadCodec",
    "RowCodec",
    "TypeLookup",
    "effect_to_operation",
    "operation_to_effect",
]

FindKeys: TypeAlias = Callable[[Shape], Collection[RowKey] | None]
"""Returns the keys of the wanted rows of a shape; None for all rows."""

_KINDS = {kind.value: kind for kind in OpType}
# One call reads all fields of an operation: reading them one by one takes as long as parsing.
_OPERATION_FIELDS = ("kind", "type", "complete", "ordinal", "row", "null_fields")
_read_operation = attrgetter(*_OPERATION_FIELDS)
_read_ordinal = attrgetter("ordinal")


class TypeLookup(Protocol):
    """Gives decoding the shape that an entry was written with."""

    def find_shape(self, type_name: str, revision: int) -> Shape:
        """Return the stored shape; `UnknownTypeError` if the log does not have it."""
        ...

    @property
    def latest(self) -> Mapping[str, Shape]:
        """The newest revision of each type."""
        ...


class RowCodec:
    """Encodes and decodes rows of one shape; work that depends on the shape is done once."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._build: Callable[..., message.Message] = shape.message_class
        self._parse = shape.message_class.FromString  # type: ignore[attr-defined]
        self._fields = {c.name: c.field for c in shape.columns}
        self._numbers = {c.name: c.number for c in shape.columns}
        descriptor = shape.message_class.DESCRIPTOR  # type: ignore[attr-defined]
        presence = {f.number: f.has_presence for f in descriptor.fields}
        self._tracked = all(presence[c.number] for c in shape.columns)
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

    def encode_row(self, values: Mapping[str, Wire | None]) -> tuple[bytes, list[int], list[int]]:
        """Return the message, the numbers of NULL fields, and those of defaults.

        The last are written columns that hold their protobuf default in a field without
        presence: protobuf leaves them out, so they would be read as not written.
        """
        fields = self._fields
        present = {fields[name]: value for name, value in values.items() if value is not None}
        nulls: list[int] = []
        if len(present) != len(values):
            nulls = [self._numbers[name] for name, value in values.items() if value is None]
        try:
            row = self._build(**present).SerializeToString()
        except (TypeError, ValueError) as cause:
            raise EntryError(
                f"a value of type {self.shape.type_name!r} does not fit its message: {cause}",
                hint="widen the field in the .proto file and register a new revision",
            ) from cause
        if self._tracked:
            return row, nulls, []
        defaults = [
            c.number for c in self._without_presence if c.field in present and not present[c.field]
        ]
        return row, nulls, defaults

    def decode_create(self, row: bytes, nulls: Sequence[int], *, ordinal: int) -> Effect:
        """Decode a create that logs every column: the fast path of replay, taken most often."""
        try:
            values = self._read_all(self._parse(row))
        except message.DecodeError as cause:
            raise _damaged_row(self.shape) from cause
        if nulls:
            known = list(values)
            for number in nulls:
                known[self._find_place(number)] = None
            values = tuple(known)
        named = dict(zip(self.shape.names, values, strict=True))
        return Effect(
            OpType.CREATE, self.shape, self._pick_key(values), named, complete=True, ordinal=ordinal
        )

    def decode_row(
        self, row: bytes, nulls: Sequence[int], *, defaults: Sequence[int], complete: bool
    ) -> dict[str, Wire | None]:
        """Return the written columns by name; the inverse of `encode_row`."""
        try:
            parsed = self._parse(row)
        except message.DecodeError as cause:
            raise _damaged_row(self.shape) from cause
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
            raise _unknown_field(self.shape, number)
        return place

    def _find_column(self, number: int) -> Column:
        column = self.shape.by_number.get(number)
        if column is None:
            raise _unknown_field(self.shape, number)
        return column


class PayloadCodec:
    """Encodes and decodes whole entries; keeps a `RowCodec` and a `RunCodec` for each shape."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], RowCodec] = {}
        self._runs: dict[tuple[str, int], RunCodec] = {}

    def find_row_codec(self, shape: Shape) -> RowCodec:
        """Return the codec of this shape, which is built at first use."""
        key = (shape.type_name, shape.revision)
        found = self._rows.get(key)
        # Another shape under the same revision: a second database, or a log that was refreshed.
        if found is None or found.shape is not shape:
            found = self._rows[key] = RowCodec(shape)
        return found

    def find_run_codec(self, shape: Shape) -> RunCodec:
        """Return the codec of this shape's runs, which is built at first use."""
        key = (shape.type_name, shape.revision)
        found = self._runs.get(key)
        if found is None or found.shape is not shape:
            found = self._runs[key] = RunCodec(shape)
        return found

    def encode(self, effects: Iterable[Effect], *, aggregate: str) -> bytes:
        """Return payload bytes; `EntryTooLargeError` if they are over the limit of an entry."""
        payload = record_pb2.Payload()
        uses: dict[int, int] = {}
        append = payload.operations.append
        for part, is_run in split_runs(list(effects)):
            shape = part[0].shape
            use = uses.get(id(shape))
            if use is None:
                use = uses[id(shape)] = len(uses)
                payload.types.add(name=shape.type_name, revision=shape.revision)
            if is_run:
                payload.runs.append(self.find_run_codec(shape).encode(part, use=use))
            else:
                for effect in part:
                    append(self._encode_operation(effect, use))
        return _serialize(payload, aggregate)

    def encode_block(self, shape: Shape, rows: bytes, *, row_count: int, aggregate: str) -> bytes:
        """Return payload bytes of adopted rows: `rows` are what COPY printed, unchanged.

        Their columns are in the order of `order_columns`.
        """
        payload = record_pb2.Payload()
        payload.types.add(name=shape.type_name, revision=shape.revision)
        fields = [column.number for column in order_columns(shape)]
        payload.blocks.add(type=0, fields=fields, row_count=row_count, rows=rows)
        return _serialize(payload, aggregate)

    def _encode_operation(self, effect: Effect, use: int) -> record_pb2.Operation:
        codec = self.find_row_codec(effect.shape)
        operation = record_pb2.Operation(
            kind=effect.kind,  # type: ignore[arg-type]
            type=use,
            complete=effect.complete,
            ordinal=effect.ordinal,
        )
        if effect.kind is not OpType.CREATE:
            names = effect.shape.key_names
            operation.key = codec.encode_row(dict(zip(names, effect.key, strict=True)))[0]
        if effect.values:
            row, nulls, defaults = codec.encode_row(effect.values)
            operation.row = row
            if nulls:
                operation.null_fields.extend(nulls)
            if defaults:
                operation.default_fields.extend(defaults)
        return operation

    def decode(
        self, payload: bytes, types: TypeLookup, *, find_keys: FindKeys | None = None
    ) -> list[Effect]:
        """Return the effects in a payload, in the order they were written.

        With `find_keys`, rows of blocks under other keys may be left out, which saves decoding
        them.
        """
        try:
            parsed = record_pb2.Payload.FromString(payload)
        except message.DecodeError as cause:
            raise DecodeError(
                "an entry's payload cannot be parsed", hint="the entry is damaged; run verify"
            ) from cause
        codecs = [
            self.find_row_codec(types.find_shape(use.name, use.revision)) for use in parsed.types
        ]
        effects = []
        create, count = OpType.CREATE.value, len(codecs)
        for operation in parsed.operations:
            kind, use, complete, ordinal, row, nulls = _read_operation(operation)
            if kind == create and complete and use < count:
                effects.append(codecs[use].decode_create(row, nulls, ordinal=ordinal))
            else:
                effects.append(_decode_operation(operation, codecs))
        # Before any block is decoded: many blocks within their own limits would add up.
        check_total(block.row_count for block in parsed.blocks)
        for block in parsed.blocks:
            effects += _decode_block(block, codecs, find_keys)
        if parsed.runs:
            effects += self._decode_runs(parsed.runs, codecs, find_keys)
            # Runs and the operations between them are apart in a payload.
            effects.sort(key=_read_ordinal)
        return effects

    def _decode_runs(
        self,
        runs: Sequence[record_pb2.RowRun],
        codecs: Sequence[RowCodec],
        find_keys: FindKeys | None,
    ) -> list[Effect]:
        check_run_rows([run.row_count for run in runs])
        effects: list[Effect] = []
        for run in runs:
            if run.type >= len(codecs):
                raise _unknown_type("a run of rows", run.type, len(codecs))
            shape = codecs[run.type].shape
            keys = None if find_keys is None else find_keys(shape)
            effects += self.find_run_codec(shape).decode(run, keys=keys)
        return effects


def _no_key(_values: Sequence[Any]) -> tuple[Any, ...]:
    return ()


def _serialize(payload: record_pb2.Payload, aggregate: str) -> bytes:
    data = payload.SerializeToString()
    if len(data) > MAX_ENTRY_BYTES:
        raise EntryTooLargeError(
            f"entry for aggregate {aggregate!r} has {len(data)} bytes, "
            f"the limit is {MAX_ENTRY_BYTES}",
            hint="write fewer rows in one transaction, or use a finer aggregate template",
        )
    return data


def _decode_block(
    block: record_pb2.RowBlock, codecs: list[RowCodec], find_keys: FindKeys | None
) -> list[Effect]:
    if block.type >= len(codecs):
        raise _unknown_type("a block of rows", block.type, len(codecs))
    shape = codecs[block.type].shape
    return read_block(
        shape,
        block.rows,
        fields=block.fields,
        row_count=block.row_count,
        first_ordinal=block.first_ordinal,
        keys=None if find_keys is None else find_keys(shape),
    )


def _decode_operation(operation: record_pb2.Operation, codecs: list[RowCodec]) -> Effect:
    kind = _KINDS.get(operation.kind)
    if kind is None or operation.type >= len(codecs):
        raise DecodeError(
            f"an operation has kind {operation.kind} and type index {operation.type} "
            f"of {len(codecs)}",
            hint="the entry is damaged or written by a newer library; upgrade and run verify",
        )
    codec = codecs[operation.type]
    complete = operation.complete
    values = codec.decode_row(
        operation.row, operation.null_fields, defaults=operation.default_fields, complete=complete
    )
    names = codec.shape.key_names
    try:
        if kind is OpType.CREATE:
            key = tuple([values[name] for name in names])
        else:
            row = codec.decode_row(operation.key, (), defaults=(), complete=False)
            key = tuple([row.get(name, _default_of(codec, name)) for name in names])
    except KeyError as cause:
        raise DecodeError(
            f"an operation on {codec.shape.type_name!r} has no value for key column {cause}",
            hint="the entry is damaged; run verify",
        ) from cause
    return Effect(kind, codec.shape, key, values, complete=complete, ordinal=operation.ordinal)


def _unknown_type(what: str, use: int, count: int) -> DecodeError:
    return DecodeError(
        f"{what} has type index {use} of {count}",
        hint="the entry is damaged or written by a newer library; upgrade and run verify",
    )


def _damaged_row(shape: Shape) -> DecodeError:
    return DecodeError(
        f"a row of type {shape.type_name!r} cannot be parsed",
        hint="the stored type does not match the bytes; run verify",
    )


def _default_of(codec: RowCodec, name: str) -> Wire:
    # A key field without presence is left out of the wire when it holds the type's default.
    column = codec.shape.by_name[name]
    return getattr(codec.shape.message_class(), column.field)  # type: ignore[no-any-return]


def _unknown_field(shape: Shape, number: int) -> DecodeError:
    return DecodeError(
        f"field {number} is not in type {shape.type_name!r} revision {shape.revision}",
        hint="the entry is damaged or its type row was altered; run verify",
    )
