"""SQL that compares, within the append, the tables that names mean with those they should.

COMMIT follows in the same round trip, so that an answer would come too late: the append itself has
to fail. Text of SQL only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OTHER_TABLE = -1
"""The tally of a transaction that wrote another table than the tracked one of that name.

No guard counts it, and where no guard has counted anything it is refused as well.
"""
_TALLY = "%s::bigint"
# An argument: the caller's search path holds, and inside the log's functions it need not.
_COMPARED = (
    "CASE WHEN ARRAY(SELECT pg_catalog.to_regclass(w.name)::oid::bigint "
    "FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS w(name, n) ORDER BY w.n) "
    f"= %s::bigint[] THEN {_TALLY} ELSE {OTHER_TABLE} END"
)


def compare_names(named: Sequence[tuple[str, int]]) -> tuple[str, tuple[Any, ...]]:
    """The tally as an argument in SQL, and the parameters that come before the tally's own."""
    if not named:
        return _TALLY, ()
    names, oids = zip(*named, strict=True)
    return _COMPARED, (list(names), list(oids))
