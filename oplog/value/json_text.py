"""Codecs of json and jsonb, and the normal form in which Postgres prints a jsonb document.

json is stored byte for byte as it was sent. jsonb is stored parsed; its text is a function of the
text that was sent. Which text that was depends on the serializer, so a document is predicted from
the text itself (`JsonText`), or from plain Python values that every serializer writes alike.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal, InvalidOperation
from json.encoder import encode_basestring
from typing import Any, Final, NoReturn, cast

from oplog.value.kind import UNSURE, Unsure, ValueCodec, Wire, make_text_codec

_MAX_DIGITS = 1000
"""Numbers that are longer, written out, are left to Postgres, which has limits of its own."""
_MAX_SPELLED = 100
"""Length of a number with an exponent that is converted here."""


class JsonText(str):
    """A JSON document as the driver sends it."""

    __slots__ = ()


def make_json_codec(pg_type: str) -> ValueCodec:
    """Codec of json: predicted from the text alone, whose white space and escapes are kept."""

    def to_wire(value: object) -> Wire | Unsure:
        # Postgres stores a zero byte in no text; its spelling \u0000 it keeps.
        if type(value) is JsonText and "\0" not in value:
            return str(value)
        return UNSURE

    return make_text_codec(pg_type, compare_as_text=True, to_wire=to_wire, to_python=_parse)


def make_jsonb_codec(pg_type: str) -> ValueCodec:
    """Codec of jsonb: predicted from the text, and for a plain dict or list.

    A str is not predicted: it could be a JSON document or a JSON string, and the same holds for
    other scalars. Compared as text because 1.0 and 1.00 are equal as jsonb.
    """

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is JsonText:
            return print_jsonb(value)
        if type(value) is not dict and type(value) is not list:
            return UNSURE
        try:
            return print_jsonb(json.dumps(value)) if _is_plain(value) else UNSURE
        except (RecursionError, ValueError):
            return UNSURE

    return make_text_codec(pg_type, compare_as_text=True, to_wire=to_wire, to_python=_parse)


def print_jsonb(text: str) -> str | Unsure:
    """The text of the jsonb that Postgres makes of a document; `UNSURE` if it may refuse it."""
    try:
        if len(text) <= _MAX_DIGITS and "\\u" not in text and text.isascii():
            # Without fractions, long numbers and characters of several bytes, Python's own encoder
            # writes what Postgres does, several times as fast.
            return _ENCODER.encode(_arrange(_PLAIN_DECODER.decode(text)))
    except (_UnpredictableError, RecursionError, ValueError):
        pass
    try:
        printed = _print(_DECODER.decode(text))
        printed.encode()  # raises for lone surrogates, which Postgres refuses
    except (_UnpredictableError, InvalidOperation, RecursionError, ValueError):
        return UNSURE
    return str(printed)


class _UnpredictableError(Exception):
    """Ends the parsing of a document; caught in `print_jsonb`."""


class _Printed(str):
    """A part of a document in its normal form."""

    __slots__ = ()


def _print_number(text: str) -> _Printed:
    """Postgres keeps a number as numeric: with its scale, without exponent or negative zero."""
    if "e" in text or "E" in text:
        if len(text) > _MAX_SPELLED:
            raise _UnpredictableError
        number = Decimal(text)
        if not number.is_finite() or not -_MAX_DIGITS < number.adjusted() < _MAX_DIGITS:
            raise _UnpredictableError
        text = format(number, "f")
    elif len(text) > _MAX_DIGITS:
        raise _UnpredictableError
    if text[0] == "-" and not text.strip("-0."):
        return _Printed(text[1:])
    return _Printed(text)


def _arrange(value: object) -> object:
    """The same, keys in the order of jsonb: by their length, then by their bytes."""
    if type(value) is dict:
        keys = sorted(value)
        keys.sort(key=len)
        return {
            key: _arrange(item) if type(item := value[key]) in _NESTED else item for key in keys
        }
    if type(value) is list:
        return [_arrange(item) if type(item) in _NESTED else item for item in value]
    return value


def _print_object(pairs: list[tuple[str, Any]]) -> _Printed:
    """Keys are ordered by length in bytes, then bytewise; of equal keys the last one counts."""
    values = dict(pairs)
    if len(values) > 1:
        # Bytes of UTF-8 are in the order of the characters; only the lengths differ.
        ascii_only = "".join(values).isascii()
        keys = sorted(sorted(values), key=len if ascii_only else _measure)
        pairs = [(key, values[key]) for key in keys]
    else:
        pairs = list(values.items())
    return _Printed(f"{{{', '.join([f'{_quote(key)}: {_print(value)}' for key, value in pairs])}}}")


def _measure(key: str) -> int:
    return len(key.encode())


def _print(value: object) -> str:
    kind = type(value)
    if kind is _Printed:
        return cast("str", value)
    if kind is str:
        return _quote(cast("str", value))
    if isinstance(value, list):
        return f"[{', '.join([_print(item) for item in value])}]"
    return "null" if value is None else "true" if value else "false"


def _quote(text: str) -> str:
    if "\0" in text:
        raise _UnpredictableError
    # Escapes what Postgres escapes, in the same way.
    return encode_basestring(text)


def _refuse_constant(text: str) -> NoReturn:
    """NaN and Infinity, which Python's serializer writes, are no JSON; fractions have digits."""
    raise _UnpredictableError(text)


_NESTED: Final = frozenset({dict, list})
_PLAIN_DECODER: Final = json.JSONDecoder(
    parse_float=_refuse_constant, parse_constant=_refuse_constant
)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_print_object,
    parse_int=cast("Any", _print_number),
    parse_float=cast("Any", _print_number),
    parse_constant=_refuse_constant,
)
"""Makes of each object and number its normal form."""


def _is_plain(value: object) -> bool:
    """Every serializer writes the value as the same document."""
    if value is None or type(value) is bool or type(value) is int or type(value) is str:
        return True
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is list:
        return all(_is_plain(item) for item in value)
    if type(value) is dict:
        return all(type(key) is str and _is_plain(value[key]) for key in value)
    return False


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Python's limits on the digits of an integer and the depth of a document are lower
        # than Postgres' limits.
        return text
