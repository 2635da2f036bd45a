"""Codecs for column values: the wire form that is logged, Python objects, and Postgres' text.

`codec_for` gives the codec of a Postgres type. `ValueCodec.to_wire` returns a wire value only
when Postgres is certain to store exactly that value. In every other case it returns `UNSURE`,
and the caller reads the stored value back from the database.
"""

from oplog.value.copytext import copy_field, read_copy_field
from oplog.value.declaration import declared_kind
from oplog.value.kind import TEXT_SETTINGS, UNSURE, Kind, Unsure, ValueCodec, Wire
from oplog.value.typename import check_parts, codec_for

__all__ = [
    "TEXT_SETTINGS",
    "UNSURE",
    "Kind",
    "Unsure",
    "ValueCodec",
    "Wire",
    "check_parts",
    "codec_for",
    "copy_field",
    "declared_kind",
    "read_copy_field",
]
