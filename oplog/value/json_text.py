"""Codecs of json and jsonb.

json is stored byte for byte as the client's serializer wrote it, which cannot be predicted.
jsonb is printed in one normal form that does not depend on the serializer.
"""

from __future__ import annotations

import json

from oplog.value.kind import UNSURE, Unsure, ValueCodec, Wire, make_text_codec


def make_json_codec(pg_type: str) -> ValueCodec:
    """Codec of json; never predicted: white space and escapes depend on the serializer."""
    return make_text_codec(pg_type, compare_as_text=True, to_python=_parse)


def make_jsonb_codec(pg_type: str) -> ValueCodec:
    """Codec of jsonb: predicted for a plain dict or list.

    A str is not predicted: it could be a JSON document or a JSON string, and the same holds for
    other scalars. Compared as text because 1.0 and 1.00 are equal as jsonb.
    """

    def to_wire(value: object) -> Wire | Unsure:
        if type(value) is not dict and type(value) is not list:
            return UNSURE
        try:
            text = json.dumps(_normalise(value), ensure_ascii=False)
            text.encode()  # raises for lone surrogates, which Postgres refuses
        except (_UnpredictableError, RecursionError, ValueError):
            return UNSURE
        return text

    return make_text_codec(pg_type, compare_as_text=True, to_wire=to_wire, to_python=_parse)


class _UnpredictableError(Exception):
    """Ends the recursion of `_normalise`; caught in this module."""


def _normalise(value: object) -> object:
    """Return the document with its keys in jsonb's order: by length in bytes, then bytewise."""
    if value is None or type(value) is bool or type(value) is int:
        return value
    if type(value) is str:
        if "\0" not in value:
            return value
    elif type(value) is float:
        # jsonb keeps numbers as numeric: no exponents, no negative zero, no NaN.
        text = repr(value)
        if value and text.strip("-.0123456789") == "":
            return value
    elif type(value) is list:
        return [_normalise(item) for item in value]
    elif type(value) is dict and all(type(key) is str and "\0" not in key for key in value):
        keys = sorted(value, key=_rank_key)
        return {key: _normalise(value[key]) for key in keys}
    raise _UnpredictableError


def _rank_key(key: str) -> tuple[int, bytes]:
    data = key.encode()
    return len(data), data


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Python's limits on the digits of an integer and the depth of a document are lower
        # than Postgres' limits.
        return text
