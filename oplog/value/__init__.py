"""One column value in its three forms: wire (logged), Python, and Postgres' own text.

Public names of the package. Must not know SQLAlchemy, psycopg, tables or messages. The hard
part is the promise behind `ValueCodec.to_wire`: a wire value is given only when Postgres is
certain to store exactly that; whenever there is doubt the answer is `UNSURE` and the stored
value has to be read back.
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
