"""Arguments that a role may call the log's functions with, drawn by a seed.

Values are of the types that the functions take: from the catalog, so that a new function is called
as well. Most are mutations of honest ones, which get past the first checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

TEXTS = (
    *(
        "",
        "a",
        " ",
        "account/1",
        "account/99",
        "adopted/account",
        "oplog/bypass",
        "oplog/request/x",
    ),
    *("oplog/quarantine", "x" * 200, "é" * 512, "x" * 1025, "{}", "NULL", "'; --", "{schema}"),
    *("account", "zzz", "retired", "adopted", "actor", "\x01", "\u202e", "-1", "0", "1e400"),
)
NUMBERS = (0, 1, -1, 2, 3, 7, 100, -(2**15), 2**15 - 1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
JSON: tuple[object, ...] = (None, True, 0, -1, 1e308, "", "x", [], {}, [[]], {"a": {}}, "é" * 300)


@dataclass
class Draw:
    """Hostile values; `honest` has some of the log's own, by type."""

    random: random.Random
    honest: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def value(self, kind: str) -> Any:
        """A value of an SQL type, NULL now and then."""
        roll = self.random.random()
        if roll < 0.1:
            return None
        if roll < 0.4 and self.honest.get(kind):
            return self.random.choice(self.honest[kind])
        if kind.endswith("[]"):
            return self.array(kind.removesuffix("[]"))
        made: Any = _MAKERS[kind](self)
        return made

    def array(self, element: str) -> list[Any]:
        length = self.random.choice((0, 1, 1, 2, 2, 3, 8, 9, 33, 600))
        values = [self.value(element) for _ in range(length)]
        if element == "text" and self.random.random() < 0.7:
            # Sorted and distinct, as aggregates have to be.
            values = sorted({value for value in values if value}, key=str.encode)
        if length and None not in values and self.random.random() < 0.1:
            return [values, list(values)]
        return values

    def json(self) -> object:
        if self.honest.get("jsonb") and self.random.random() < 0.7:
            return self.mutate(self.random.choice(self.honest["jsonb"]))
        return self.random.choice(JSON)

    def mutate(self, document: Any) -> object:
        """A document with one value, somewhere, that is another."""
        if isinstance(document, dict) and document and self.random.random() < 0.9:
            key = self.random.choice(list(document))
            if self.random.random() < 0.1:
                return {other: document[other] for other in document if other != key}
            return {**document, key: self.mutate(document[key])}
        if isinstance(document, list) and document and self.random.random() < 0.9:
            place = self.random.randrange(len(document))
            return [*document[:place], self.mutate(document[place]), *document[place + 1 :]]
        other: object = self.random.choice((*JSON, *TEXTS, *NUMBERS))
        return other

    def bytes(self) -> bytes:
        length = self.random.choice((0, 1, 31, 32, 33, 77, 200, 5000))
        return self.random.choice((bytes(length), self.random.randbytes(length)))


_MAKERS: dict[str, Callable[[Draw], Any]] = {
    "text": lambda draw: draw.random.choice(TEXTS),
    "bytea": Draw.bytes,
    "boolean": lambda draw: draw.random.random() < 0.8,
    "smallint": lambda draw: draw.random.choice([n for n in NUMBERS if abs(n) < 2**15]),
    "integer": lambda draw: draw.random.choice([n for n in NUMBERS if -(2**31) <= n < 2**31]),
    "bigint": lambda draw: draw.random.choice(NUMBERS),
    "uuid": lambda draw: UUID(int=draw.random.choice((0, 1, draw.random.getrandbits(128)))),
    "jsonb": Draw.json,
    "oid": lambda draw: draw.random.choice([n for n in NUMBERS if 0 <= n < 2**32]),
}


@dataclass(frozen=True)
class Function:
    """A function that a role may execute: its name and the names and types of its arguments."""

    name: str
    arguments: Mapping[str, str]

    def state(self) -> str:
        places = ", ".join(f"{name} => %s::{kind}" for name, kind in self.arguments.items())
        return f"SELECT oplog.{self.name}({places})"


def list_functions(connection: Connection, role: str) -> list[Function]:
    """What a role may execute of the log, by the catalog."""
    rows = connection.exec_driver_sql(
        "SELECT p.proname::text, coalesce(p.proargnames[1:p.pronargs], '{}'), ARRAY("
        "SELECT format_type(t, NULL) FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a(t, n) "
        "ORDER BY n) FROM pg_proc p WHERE p.pronamespace = 'oplog'::regnamespace "
        "AND p.prorettype <> 'trigger'::regtype "
        "AND has_function_privilege(%s, p.oid, 'EXECUTE') ORDER BY 1",
        (role,),
    )
    return [Function(name, dict(zip(names, kinds, strict=True))) for name, names, kinds in rows]


def call(
    connection: Connection, function: Function, values: Mapping[str, Any], *, keep: bool
) -> str | None:
    """The SQLSTATE and message of the refusal; None for what was accepted, and taken back."""
    savepoint = connection.begin_nested()
    try:
        connection.exec_driver_sql(function.state(), tuple(values.values())).close()
    except DBAPIError as refused:
        savepoint.rollback()
        found: Any = refused.orig
        return f"{found.sqlstate} {found.diag.message_primary or found}"
    if keep:
        savepoint.commit()
    else:
        savepoint.rollback()
    return None
