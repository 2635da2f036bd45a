"""Codecs of boolean, the integers, the floats and numeric.

numeric keeps its display scale and rounds half away from zero. The text of a `real` is rounded
once, straight to single precision: going through a double can give another value.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import cast

from oplog.value.kind import (
    UNSURE,
    Kind,
    Unsure,
    ValueCodec,
    Wire,
    make_text_codec,
    wire_as_python,
)

# With an explicit byte order, struct raises on overflow; the native order packs infinity.
_SINGLE = struct.Struct("<f")
_MAX_PLAIN_DIGITS = 1000
"""Unconstrained numerics with more digits on either side are left to Postgres, whose limits
(131072 before and 16383 after the point) depend on how the text is spelled."""
_MAX_STR_SCALE = 6
"""str() of a Decimal is faster than format(), but writes an exponent below 0.000001."""


def make_bool_codec(pg_type: str) -> ValueCodec:
    """Codec of boolean."""

    def to_wire(value: object) -> Wire | Unsure:
        return value if type(value) is bool else UNSURE

    def from_text(text: str) -> bool:
        # `::text` prints 'true', but elements of an array print as 't'.
        return text in ("true", "t")

    def to_text(wire: Wire) -> str:
        return "t" if wire else "f"

    return ValueCodec(
        pg_type=pg_type,
        kind=Kind.BOOL,
        to_wire=to_wire,
        to_python=wire_as_python,
        from_text=from_text,
        to_text=to_text,
        compare_as_text=False,
    )


def make_int_codec(pg_type: str, bits: int) -> ValueCodec:
    """Codec of smallint, integer or bigint: two's complement of `bits` bits."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def to_wire(value: object) -> Wire | Unsure:
        return value if type(value) is int and low <= value <= high else UNSURE

    return ValueCodec(
        pg_type=pg_type,
        kind=Kind.INT,
        to_wire=to_wire,
        to_python=wire_as_python,
        from_text=int,
        to_text=str,
        compare_as_text=False,
    )


def make_double_codec(pg_type: str) -> ValueCodec:
    """Codec of double precision."""

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is float:
            return math.nan if math.isnan(value) else value
        if type(value) is int and -(1 << 53) <= value <= 1 << 53:
            return float(value)
        return UNSURE

    return ValueCodec(
        pg_type=pg_type,
        kind=Kind.FLOAT8,
        to_wire=to_wire,
        to_python=wire_as_python,
        from_text=_parse_double,
        to_text=repr,
        # 0.0 = -0.0 in SQL, though they are stored and printed differently.
        compare_as_text=True,
    )


def _parse_double(text: str) -> float:
    # Always the same NaN: as part of a key it is looked up, and equal only if identical.
    return math.nan if text == "NaN" else float(text)


def round_to_single(value: float) -> float:
    """The nearest IEEE single, ties to even. OverflowError beyond the largest one."""
    return cast("float", _SINGLE.unpack(_SINGLE.pack(value))[0])


def parse_single(text: str) -> float:
    """The single nearest to a decimal, rounded once."""
    double = _parse_double(text)
    if math.isnan(double):
        return double
    single = round_to_single(double)
    other = 2 * double - single
    # If `other` is a single too, the double lies exactly between the two, perhaps only because
    # it was rounded itself: without this comparison 7.038531e-26 is one bit off.
    if other != single and math.isfinite(other) and round_to_single(other) == other:
        side = Decimal(text).compare(Decimal(double))
        if side:
            return max(single, other) if side > 0 else min(single, other)
    return single


def make_single_codec(pg_type: str) -> ValueCodec:
    """Codec of real."""

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is float:
            if math.isnan(value):
                return math.nan
            try:
                single = round_to_single(value)
            except OverflowError:
                return UNSURE
            # Postgres raises an error instead of rounding a value to zero.
            return single if single or not value else UNSURE
        # Larger integers need not be exact in single precision.
        if type(value) is int and -(1 << 24) <= value <= 1 << 24:
            return float(value)
        return UNSURE

    return ValueCodec(
        pg_type=pg_type,
        kind=Kind.FLOAT4,
        to_wire=to_wire,
        to_python=wire_as_python,
        from_text=parse_single,
        to_text=repr,
        compare_as_text=True,
    )


def make_numeric_codec(pg_type: str, *modifiers: int) -> ValueCodec:
    """Codec of numeric, numeric(precision) or numeric(precision, scale)."""
    if not modifiers:
        # 1.0 = 1.00 in SQL, though scale is stored and printed.
        return make_text_codec(
            pg_type, compare_as_text=True, to_wire=_predict_plain_numeric, to_python=Decimal
        )
    precision, scale = modifiers[0], modifiers[1] if len(modifiers) > 1 else 0
    return make_text_codec(
        pg_type,
        compare_as_text=False,
        to_wire=_predict_fixed_numeric(precision, scale),
        to_python=Decimal,
    )


def _predict_plain_numeric(value: object) -> Wire | Unsure:
    if type(value) is Decimal:
        # Checked before formatting: Decimal('1E+999999999') would print a gigabyte.
        if not -_MAX_PLAIN_DIGITS < value.adjusted() < _MAX_PLAIN_DIGITS:
            return UNSURE
        text = format(value, "f")
        if not value.is_finite():
            return text if text in ("NaN", "Infinity", "-Infinity") else UNSURE
        if len(text) > _MAX_PLAIN_DIGITS:
            return UNSURE
        # numeric has no negative zero.
        return text if value else text.lstrip("-")
    if type(value) is int and value.bit_length() < _MAX_PLAIN_DIGITS:
        return str(value)
    return UNSURE


def _print_plainly(value: Decimal) -> str:
    return format(value, "f")


def _predict_fixed_numeric(precision: int, scale: int) -> Callable[[object], Wire | Unsure]:
    """`to_wire` of numeric(precision, scale), which may have a scale below 0 or over precision."""
    step = Decimal(1).scaleb(-scale)
    # With `prec` digits, quantize() itself refuses what overflows the column.
    context = Context(
        prec=precision,
        rounding=ROUND_HALF_UP,
        Emin=MIN_EMIN,
        Emax=MAX_EMAX,
        traps=[InvalidOperation],
    )
    show: Callable[[Decimal], str] = str if 0 <= scale <= _MAX_STR_SCALE else _print_plainly

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is Decimal:
            number = value
        elif type(value) is int:
            number = Decimal(value)
        else:
            return UNSURE
        try:
            rounded = number.quantize(step, None, context)
        except InvalidOperation:
            return UNSURE
        text = show(rounded)
        if rounded:
            # NaN is true. With a payload or a sign, Postgres would not accept its text.
            return UNSURE if rounded.is_nan() and text != "NaN" else text
        return text.lstrip("-")

    return to_wire
