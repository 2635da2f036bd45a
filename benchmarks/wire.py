"""Statements and network round trips, counted in libpq's trace of a connection."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Engine

_SWITCH = re.compile(r"^(?:[\d\-: .]*\t)?([FB])\t", re.MULTILINE)


def count_wire(engine: Engine, work: Callable[[], None], transactions: int) -> tuple[float, float]:
    """Statements (BEGIN and COMMIT included) and round trips for each transaction of `work`."""
    raw: Any = engine.raw_connection()
    with tempfile.NamedTemporaryFile() as file:
        raw.driver_connection.pgconn.trace(file.fileno())
        raw.close()
        work()
        raw = engine.raw_connection()
        raw.driver_connection.pgconn.untrace()
        raw.close()
        file.seek(0)
        trace = file.read().decode("utf-8", "replace")
    statements = trace.count("\tExecute\t") + trace.count("\tQuery\t")
    return statements / transactions, count_trips(trace) / transactions


def count_trips(trace: str) -> int:
    """How often the direction changes from the client's messages to the server's."""
    directions = _SWITCH.findall(trace)
    return sum(a == "F" and b == "B" for a, b in itertools.pairwise(directions))
