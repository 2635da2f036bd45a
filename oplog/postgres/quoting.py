"""Identifiers and literals as SQL text. Names are data, whatever they contain."""

from __future__ import annotations

from collections.abc import Iterable

from oplog.errors import ConfigurationError


def quote(identifier: str) -> str:
    """`identifier` as a quoted SQL identifier. Names are data, whatever they contain."""
    if not identifier or "\x00" in identifier:
        raise ConfigurationError(
            f"{identifier!r} is no name in a database", hint="give a non-empty name without NUL"
        )
    return '"' + identifier.replace('"', '""') + '"'


def double_percent(sql: str) -> str:
    """`sql` for a statement that the driver reads for placeholders, as it does through SQLAlchemy.

    A percent sign in a name would be taken for one; only `no_parameters` leaves it alone.
    """
    return sql.replace("%", "%%")


def quote_for_driver(identifier: str) -> str:
    """`quote` for a statement that the driver reads for placeholders."""
    return double_percent(quote(identifier))


def quote_literal(text: str) -> str:
    """`text` as an SQL string literal, for DDL that takes no parameters."""
    return "'" + text.replace("'", "''") + "'"


def qualify(tables: Iterable[str], schema: str | None) -> list[str]:
    """Quoted names of tables, in `schema` or where the search path finds them."""
    return [quote(t) if schema is None else f"{quote(schema)}.{quote(t)}" for t in tables]
