"""Maps a column's SQL type, as a model declares it, to the kind of its logged values.

The result must agree with `codec_for` on the type that Postgres makes of the declaration:
message fields are derived from the declaration, values from the column in the database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from oplog.value.kind import Kind

_KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        **dict.fromkeys(("bool", "boolean"), Kind.BOOL),
        **dict.fromkeys(
            (
                *("smallint", "int2", "smallserial", "serial2"),
                *("integer", "int", "int4", "serial", "serial4"),
                *("bigint", "int8", "bigserial", "serial8"),
            ),
            Kind.INT,
        ),
        **dict.fromkeys(("real", "float4"), Kind.FLOAT4),
        **dict.fromkeys(("double precision", "float8", "float"), Kind.FLOAT8),
        "bytea": Kind.BYTES,
    }
)
_FLOAT = re.compile(r"float ?\( ?([0-9]+) ?\)")
_SINGLE_BITS = 24


def declared_kind(sql_type: str) -> Kind:
    """Return the kind of a type as DDL spells it, such as 'BIGINT', 'VARCHAR(40)', 'INTEGER[]'.

    Every name that is not recognised, such as a domain's or an enum's, is `Kind.TEXT`.
    """
    name = " ".join(sql_type.lower().split())
    if match := _FLOAT.fullmatch(name):
        return Kind.FLOAT4 if int(match[1]) <= _SINGLE_BITS else Kind.FLOAT8
    return _KINDS.get(name, Kind.TEXT)
