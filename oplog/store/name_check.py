"""SQL that compares, within the append, the tables that names mean with those they should.

COMMIT follows in the same round trip, so that an answer would come too late: the append itself has
to fail. Text of SQL only.
"""

from __future__ import annotations

from collections.abc import Sequence

from oplog.postgres.binary_message import INT8, INT8_ARRAY, TEXT_ARRAY, Message, Parameter

OTHER_TABLE = -1
"""The tally of a transaction that wrote another table than the tracked one of that name.

No guard counts it, and where no guard has counted anything it is refused as well.
"""


def compare_names(
    named: Sequence[tuple[str, int]], *, first: int
) -> tuple[str, tuple[Parameter, ...]]:
    """The tally as an argument in SQL, and the parameters that come before the tally's own.

    `first` is the number of the first of them.
    """
    if not named:
        return f"${first}", ()
    names, oids = zip(*named, strict=True)
    # An argument: the caller's search path holds, and inside the log's functions it need not.
    compared = (
        "CASE WHEN ARRAY(SELECT pg_catalog.to_regclass(w.name)::oid::bigint "
        f"FROM pg_catalog.unnest(${first}::text[]) WITH ORDINALITY AS w(name, n) ORDER BY w.n) "
        f"= ${first + 1}::bigint[] THEN ${first + 2} ELSE {OTHER_TABLE} END"
    )
    return compared, (Parameter(TEXT_ARRAY, names), Parameter(INT8_ARRAY, oids))


def bind_call(
    call: str,
    parameters: tuple[Parameter, ...],
    *,
    tally: int | None,
    named: Sequence[tuple[str, int]],
    last: Parameter | None = None,
) -> Message:
    """A call, its tally behind the parameters, and the last one, if there is one, behind that."""
    counted, compared = compare_names(named, first=len(parameters) + 1)
    bound = (*parameters, *compared, Parameter(INT8, tally))
    if last is None:
        return Message(f"{call}{counted})", bound)
    return Message(f"{call}{counted}, ${len(bound) + 1})", (*bound, last))
