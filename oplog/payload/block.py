"""Decodes row blocks: many rows of one table, as COPY printed them.

Adoption writes blocks, because it logs rows without looking at each of them. A *patch* has the key
and some columns of rows that the log knows already. A block can be damaged or forged. What COPY
does not write is refused, and the number of rows that a block claims is checked before any of them
is decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from oplog.entry import OpType
from oplog.errors import DecodeError
from oplog.payload.effect import Effect
from oplog.payload.shape import Column, Shape
from oplog.value import Kind, ValueCodec, Wire, copy_field, read_copy_field
from oplog.value.kind import text_as_wire

RowKey: TypeAlias = tuple[Wire | None, ...]

MAX_BLOCK_ROWS: Final = 131_072
"""Most rows of one part. Without this limit, 16 MiB of very short rows would decode to
millions of Python objects."""
_BARE = "\b\v\f\r"
"""Characters that COPY escapes, besides those that end a field or a row."""
_BOOLS = {"true": True, "false": False}


def order_columns(shape: Shape, only: Collection[str] | None = None) -> tuple[Column, ...]:
    """Return the columns in the order of a block: the key first, so that rows are found by it.

    `only` are names of the columns beside the key; None for all.
    """
    others = (c for c in shape.columns if not c.primary_key)
    return (*shape.key_columns, *(c for c in others if only is None or c.name in only))


def read_block(
    shape: Shape,
    rows: bytes,
    *,
    fields: Sequence[int],
    row_count: int,
    first_ordinal: int,
    place: int = 0,
    keys: Collection[RowKey] | None = None,
    patch: bool = False,
) -> list[Effect]:
    """Return the effects in a block, or only those on rows under one of `keys`.

    They are creates, of a `patch` updates. `fields` are the field numbers of the rows' columns,
    `place` is the number of the rows' aggregate in the record. Raises `DecodeError` unless the
    fields are all columns of the shape, or those of the key and then others for a `patch`, there
    are `row_count` rows, and each row is one that COPY writes.
    """
    columns = (_find_patched if patch else _find_columns)(shape, fields)
    _check_count(shape, rows, row_count)
    make = _Maker(shape, columns, place, patch=patch)
    if keys is None:
        return make.read_rows(rows, first=first_ordinal)
    prefixes = _print_keys(columns, shape, keys)
    if prefixes is None:
        # A value may have several texts (1 and 1.0 of a float): decode every row and compare.
        found = make.read_rows(rows, first=first_ordinal)
        wanted = set(keys)
        return [effect for effect in found if effect.key in wanted]
    effects: list[Effect] = []
    whole = len(columns) == len(shape.key_columns)
    for prefix in prefixes:
        for start, end in _find_lines(rows, prefix + (b"\n" if whole else b"\t")):
            ordinal = first_ordinal + rows.count(b"\n", 0, start)
            effects += make.read_rows(rows[start:end], first=ordinal)
    return effects


def check_total(row_counts: Iterable[int]) -> None:
    """Raise `DecodeError` for a part whose blocks claim more rows than any part has."""
    total = sum(row_counts)
    if total > MAX_BLOCK_ROWS:
        raise DecodeError(
            f"a part's blocks claim {total} rows; the limit is {MAX_BLOCK_ROWS}",
            hint="the record is damaged or written by a newer library; upgrade and run verify",
        )


def _find_columns(shape: Shape, fields: Sequence[int]) -> list[Column]:
    if len(fields) != len(shape.columns) or set(fields) != shape.by_number.keys():
        raise _damaged(
            shape, f"its columns are fields {list(fields[:20])}, not each field of the type once"
        )
    return [shape.by_number[number] for number in fields]


def _find_patched(shape: Shape, fields: Sequence[int]) -> list[Column]:
    # Counted first: a forged block may name millions of them.
    known = len(fields) <= len(shape.columns) and set(fields) <= shape.by_number.keys()
    if not known or len(set(fields)) != len(fields):
        raise _damaged(
            shape, f"its columns are fields {list(fields[:20])}, not fields of the type, each once"
        )
    columns = [shape.by_number[number] for number in fields]
    width = len(shape.key_columns)
    if not all(column.primary_key for column in columns[:width]) or len(columns) <= width:
        raise _damaged(
            shape, f"its columns are fields {list(fields[:20])}, not the key and then others"
        )
    return columns


def _check_count(shape: Shape, rows: bytes, row_count: int) -> None:
    found = rows.count(b"\n")
    if found != row_count:
        raise _damaged(shape, f"it claims {row_count} rows but has {found}")
    if rows and not rows.endswith(b"\n"):
        raise _damaged(shape, "bytes follow its last row")


# -- all rows ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes effects of the rows of one block."""

    shape: Shape
    columns: Sequence[Column]
    place: int
    patch: bool

    def read_rows(self, rows: bytes, *, first: int) -> list[Effect]:
        """Return the effects of these whole rows, with ordinals from `first` on."""
        if not rows:
            return []
        shape = self.shape
        try:
            text = rows.decode()
            by_column = _split(text, len(self.columns))
            escaped = "\\" in text
            values = {
                column.name: _read_column(shape.codecs[column.name], found, escaped=escaped)
                for column, found in zip(self.columns, by_column, strict=True)
            }
        except (ValueError, ArithmeticError, KeyError) as cause:
            raise _damaged(shape, f"a row is not what COPY writes: {cause}") from cause
        if any(None in values[name] for name in shape.key_names):
            raise _damaged(shape, "a row has NULL in its key")
        names = shape.names
        if self.patch:
            names = tuple(c.name for c in shape.columns if c.name in values and not c.primary_key)
        keys = zip(*[values[name] for name in shape.key_names], strict=True)
        written = zip(*[values[name] for name in names], strict=True)
        return [
            Effect(
                OpType.UPDATE if self.patch else OpType.CREATE,
                shape,
                key,
                dict(zip(names, row, strict=True)),
                complete=not self.patch,
                ordinal=ordinal,
                adopted=True,
                place=self.place,
            )
            for ordinal, (key, row) in enumerate(zip(keys, written, strict=True), first)
        ]


def _split(text: str, width: int) -> Iterable[tuple[str, ...]]:
    """Return the fields of each column."""
    if any(bare in text for bare in _BARE):
        raise ValueError("a character that COPY escapes is not escaped")
    lines = [line.split("\t") for line in text[:-1].split("\n")]
    if any(len(line) != width for line in lines):
        raise ValueError(f"it does not have {width} columns")
    return zip(*lines, strict=True)


def _read_column(
    codec: ValueCodec, fields: Sequence[str], *, escaped: bool
) -> Sequence[Wire | None]:
    texts: Sequence[str | None] = fields
    # One search over all fields is much cheaper than one for each field.
    if escaped and "\\" in "".join(fields):
        texts = [read_copy_field(field) if "\\" in field else field for field in fields]
    if codec.from_text is text_as_wire:
        return texts
    if codec.kind is Kind.BOOL:
        return [None if text is None else _BOOLS[text] for text in texts]
    read = codec.from_text
    if texts is fields:
        values: list[Wire | None] = [read(text) for text in fields]
    else:
        values = [None if text is None else read(text) for text in texts]
    if codec.kind is Kind.BYTES:
        write = codec.to_text
        for text, value in zip(texts, values, strict=True):
            # bytes.fromhex also accepts upper case and white space, which COPY never writes.
            if value is not None and write(value) != text:
                raise ValueError("bytes are not written as \\x and lower-case hex digits")
    return values


# -- rows by key ------------------------------------------------------------------------------


def _print_keys(
    columns: Sequence[Column], shape: Shape, keys: Collection[RowKey]
) -> list[bytes] | None:
    """Return the bytes that rows under these keys begin with; None if that is not certain."""
    first = columns[: len(shape.key_columns)]
    codecs = [shape.codecs[column.name] for column in first]
    if not all(column.primary_key and _is_literal(codec) for column, codec in zip(first, codecs)):  # noqa: B905 - made of one another
        return None
    places = [shape.key_names.index(column.name) for column in first]
    prefixes = []
    for key in keys:
        parts = [(codec, key[place]) for codec, place in zip(codecs, places, strict=True)]
        if all(part is not None for _, part in parts):
            texts = [copy_field(codec.to_text(part)) for codec, part in parts if part is not None]
            prefixes.append("\t".join(texts).encode())
    return prefixes


def _is_literal(codec: ValueCodec) -> bool:
    """Whether a value of this codec has only one text, the one that the codec writes."""
    return codec.kind in (Kind.INT, Kind.BYTES) or codec.from_text is text_as_wire


def _find_lines(rows: bytes, prefix: bytes) -> Iterable[tuple[int, int]]:
    """Yield start and end of each line that begins with `prefix`."""
    start = 0 if rows.startswith(prefix) else rows.find(b"\n" + prefix) + 1
    while start or rows.startswith(prefix):
        end = rows.index(b"\n", start) + 1
        yield start, end
        found = rows.find(b"\n" + prefix, end - 1)
        if found < 0:
            return
        start = found + 1


def _damaged(shape: Shape, why: str) -> DecodeError:
    return DecodeError(
        f"a block of rows of type {shape.type_name!r} revision {shape.revision} cannot be read: "
        f"{why}",
        hint="the record is damaged or written by a newer library; upgrade and run verify",
    )
