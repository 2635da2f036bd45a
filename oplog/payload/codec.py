"""Encodes row effects to the payloads of a record's parts, and decodes them.

Effects hold wire values: replay turns them into SQL text without making Python objects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Protocol, TypeAlias

from google.protobuf import message

from oplog._proto.oplog.v1 import record_pb2
from oplog.entry import MAX_PART_BYTES, OpType
from oplog.errors import DecodeError, EntryTooLargeError
from oplog.payload.block import RowKey, check_total, order_columns, read_block
from oplog.payload.effect import Effect, effect_to_operation, operation_to_effect
from oplog.payload.field_count import check_fields, check_messages
from oplog.payload.row_codec import RowCodec
from oplog.payload.row_run import MAX_NUMBER, RunCodec, RunRows, check_run_rows, split_runs
from oplog.payload.shape import Shape

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

# One call reads all fields of an operation: reading them one by one takes as long as parsing.
_OPERATION_FIELDS = ("kind", "type", "complete", "ordinal", "row", "null_fields", "aggregate")
_read_operation = attrgetter(*_OPERATION_FIELDS)
_read_ordinal = attrgetter("ordinal")


class TypeLookup(Protocol):
    """Gives decoding the shape that a record was written with."""

    def find_shape(self, type_name: str, revision: int) -> Shape:
        """Return the stored shape; `UnknownTypeError` if the log does not have it."""
        ...

    @property
    def latest(self) -> Mapping[str, Shape]:
        """The newest revision of each type."""
        ...


class PayloadCodec:
    """Encodes and decodes parts of records; keeps a `RowCodec` and a `RunCodec` for each shape."""

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

    def encode(
        self, effects: Sequence[Effect], *, first: int = 0, rows: Sequence[RunRows] = ()
    ) -> bytes:
        """Return the payload of a part: effects on aggregates from number `first` on.

        Effects that are alike become one run wherever they stand; a run is smallest, and read
        fastest, if `effects` are sorted by place, then by ordinal. Each of `rows`, which have to
        fit one, is a run of its own. Raises `EntryError` for a value that does not fit its field.
        """
        payload = record_pb2.Payload()
        uses: dict[int, int] = {}
        for group, is_run in split_runs(effects):
            shape = group[0].shape
            codec = self.find_row_codec(shape)
            use = uses.get(id(shape))
            if use is None:
                use = _use_type(payload, uses, shape)
            if is_run:
                run = self.find_run_codec(shape).encode(group, use=use, first=first)
                payload.runs.append(run)
            else:
                for effect in group:
                    codec.add_operation(payload, effect, use=use, first=first)
        for columns in rows:
            shape = columns.shape
            use = uses.get(id(shape))
            if use is None:
                use = _use_type(payload, uses, shape)
            run = self.find_run_codec(shape).encode_rows(columns, use=use, first=first)
            payload.runs.append(run)
        return payload.SerializeToString()

    def encode_block(
        self,
        shape: Shape,
        rows: bytes,
        *,
        row_count: int,
        columns: Collection[str] | None = None,
    ) -> bytes:
        """Return the payload of a part with adopted rows: `rows` are what COPY printed, unchanged.

        Their columns are in the order of `order_columns`, their aggregate is the record's first.
        With `columns` it is a patch of these columns. Raises `EntryTooLargeError` if they are over
        the limit of a part.
        """
        payload = record_pb2.Payload()
        payload.types.add(name=shape.type_name, revision=shape.revision)
        fields = [column.number for column in order_columns(shape, columns)]
        patch = columns is not None
        payload.blocks.add(type=0, fields=fields, row_count=row_count, rows=rows, patch=patch)
        data = payload.SerializeToString()
        if len(data) > MAX_PART_BYTES:
            raise EntryTooLargeError(
                f"{row_count} rows of type {shape.type_name!r} have {len(data)} bytes, the limit "
                f"is {MAX_PART_BYTES}",
                hint="adopt fewer rows at a time, or keep large values outside the logged tables",
            )
        return data

    def decode(
        self,
        payload: bytes,
        types: TypeLookup,
        *,
        first: int = 0,
        find_keys: FindKeys | None = None,
    ) -> list[Effect]:
        """Return the effects in a part's payload, sorted by ordinal.

        `first` is the number of the part's first aggregate. Whether the record has as many
        aggregates as the effects' places say is for the caller to check. With `find_keys`, rows
        of blocks and runs under other keys may be left out, which saves decoding them. Raises
        `DecodeError` for bytes that `encode` and `encode_block` do not give.
        """
        check_fields(payload)
        try:
            parsed = record_pb2.Payload.FromString(payload)
        except message.DecodeError as cause:
            raise DecodeError(
                "a record's payload cannot be parsed", hint="the record is damaged; run verify"
            ) from cause
        lists = (parsed.types, parsed.operations, parsed.blocks, parsed.runs)
        check_messages(sum(len(one) for one in lists))
        codecs = [
            self.find_row_codec(types.find_shape(use.name, use.revision)) for use in parsed.types
        ]
        effects = []
        create, count = OpType.CREATE.value, len(codecs)
        for operation in parsed.operations:
            kind, use, complete, ordinal, row, nulls, aggregate = _read_operation(operation)
            place = first + aggregate
            if use >= count:
                raise _unknown_type("an operation", use, count)
            if kind == create and complete:
                effects.append(codecs[use].decode_create(row, nulls, ordinal=ordinal, place=place))
            else:
                effects.append(codecs[use].decode_operation(operation, place=place))
        # Before any block is decoded: many blocks within their own limits would add up.
        check_total(block.row_count for block in parsed.blocks)
        for block in parsed.blocks:
            effects += _decode_block(block, codecs, first=first, find_keys=find_keys)
        if parsed.runs:
            effects += self._decode_runs(parsed.runs, codecs, first=first, find_keys=find_keys)
        effects.sort(key=_read_ordinal)
        return effects

    def _decode_runs(
        self,
        runs: Sequence[record_pb2.RowRun],
        codecs: Sequence[RowCodec],
        *,
        first: int,
        find_keys: FindKeys | None,
    ) -> list[Effect]:
        check_run_rows([run.row_count for run in runs])
        effects: list[Effect] = []
        for run in runs:
            if run.type >= len(codecs):
                raise _unknown_type("a run of rows", run.type, len(codecs))
            shape = codecs[run.type].shape
            keys = None if find_keys is None else find_keys(shape)
            effects += self.find_run_codec(shape).decode(run, first=first, keys=keys)
        return effects


def _use_type(payload: record_pb2.Payload, uses: dict[int, int], shape: Shape) -> int:
    """Name a type in the payload; its index."""
    use = uses[id(shape)] = len(uses)
    added = payload.types.add()
    added.name, added.revision = shape.type_name, shape.revision
    return use


def _decode_block(
    block: record_pb2.RowBlock,
    codecs: list[RowCodec],
    *,
    first: int,
    find_keys: FindKeys | None,
) -> list[Effect]:
    if block.type >= len(codecs):
        raise _unknown_type("a block of rows", block.type, len(codecs))
    if block.first_ordinal + block.row_count > MAX_NUMBER + 1:
        raise DecodeError(
            f"a block of {block.row_count} rows begins at ordinal {block.first_ordinal}",
            hint="the record is damaged or written by a newer library; upgrade and run verify",
        )
    shape = codecs[block.type].shape
    return read_block(
        shape,
        block.rows,
        fields=block.fields,
        row_count=block.row_count,
        first_ordinal=block.first_ordinal,
        place=first + block.aggregate,
        keys=None if find_keys is None else find_keys(shape),
        patch=block.patch,
    )


def _unknown_type(what: str, use: int, count: int) -> DecodeError:
    return DecodeError(
        f"{what} has type index {use} of {count}",
        hint="the record is damaged or written by a newer library; upgrade and run verify",
    )
