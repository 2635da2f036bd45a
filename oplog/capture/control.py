"""Recognises statements, given as text, that control a transaction or the meaning of names.

Pure: compares the first words of a statement, after comments, which in Postgres may be nested.
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

from oplog.capture.script import skip_comment, split_script

_CONTROL = re.compile(
    r"(?:(?P<save>savepoint)|(?P<back>rollback\s+(?:(?:work|transaction)\s+)?to(?:\s+savepoint)?)"
    r"|(?P<release>release(?:\s+savepoint)?)|(?P<end>commit|end|rollback|abort|prepare\s+transaction"
    r"))\b\s*(?P<name>\"(?:[^\"]|\"\")*\"|\w+)?",
    re.IGNORECASE,
)
_PASSIVE = re.compile(
    r"(?:select|set|show|savepoint|release|rollback|reset|lock|listen|notify)\b", re.IGNORECASE
)
_NEUTRAL = re.compile(
    r"(?:select|with|values|table|insert|update|delete|merge|copy|show|lock|fetch|move|declare"
    r"|close|listen|unlisten|notify|savepoint|release|rollback|commit|end|abort|begin|start"
    r"|analyze|set\s+(?:local\s+|session\s+)?(?!local\b|session\b|search_path\b|role\b"
    r"|schema\b|authorization\b|session_authorization\b)\w)",
    re.IGNORECASE,
)
"""How statements begin after which every name means the same table as before."""
_REDIRECTING = re.compile(
    r"\bset_config\s*\((?!\s*'(?!search_path'|role'|session_authorization')[\w.]+')|;\s*\S",
    re.IGNORECASE,
)
_INTO = re.compile(r"(?:select|with)\b.*\binto\b", re.IGNORECASE | re.DOTALL)
_SPACE_OR_COMMENT = re.compile(r"\s+|--[^\n]*(?:\n|$)")
_TEMPORARY = r"(?:(?:global|local)\s+)?temp(?:orary)?\b"
_ROWS = (
    r"select|with|values|table|insert|update|delete|merge|copy|show|fetch|move|declare|close"
    r"|listen|unlisten|notify|lock|savepoint|release|rollback|commit|end|abort|begin|start|prepare"
    r"|execute|deallocate|explain|reset"
    r"|set(?!\s+constraints\b)|set\s+constraints\b(?!.*\bimmediate\b)"
)
_CONCERNS_ROWS = re.compile(rf"(?:{_ROWS})\b", re.IGNORECASE | re.DOTALL)
"""How statements begin that write rows, read them, or control a transaction or its settings."""
_LEAVES_TABLES = re.compile(
    rf"(?:{_ROWS}|analyze|analyse|comment|grant|revoke|discard|load|checkpoint|security"
    rf"|create\s+(?:{_TEMPORARY}|schema|sequence|type|domain|extension|role|user"
    r"|(?:unlogged\s+)?table\b(?!.*\b(?:references|partition|inherits)\b)"
    r"|(?:or\s+replace\s+)?(?:function|procedure|aggregate|view)))\b",
    re.IGNORECASE | re.DOTALL,
)
"""How statements begin that Postgres executes on a table whose changes are not settled yet."""
_ALTERS = re.compile(
    r"(?:alter\s+(?:table|type|domain|schema)\b|drop\s+(?:trigger|rule|schema|type|domain)\b"
    r"|create\s+(?:unlogged\s+)?table\b|create\s+(?:or\s+replace\s+)?(?:constraint\s+)?trigger\b"
    r"|create\s+(?:or\s+replace\s+)?rule\b|import\b)",
    re.IGNORECASE,
)
_ROUTINE = re.compile(r"(?:do|call)\b", re.IGNORECASE)
_WORD = r'(?:\w+|"(?:[^"]|"")*")'
_TRACKS = re.compile(
    rf"select\s+(?:{_WORD}\s*\.\s*)?oplog_(?:track_table|untrack_table|drop_guard)\b",
    re.IGNORECASE,
)
_CALL = re.compile(rf"select\s+(?:{_WORD}\s*\.\s*)?{_WORD}\s*\(", re.IGNORECASE)
_FROM = re.compile(r"\bfrom\b", re.IGNORECASE)
_WRITES = re.compile(
    r"(?:insert|update|delete|merge|copy|execute)\b"
    r"|(?:with|explain)\b.*\b(?:insert|update|delete|merge)\b",
    re.IGNORECASE | re.DOTALL,
)
_BEGINS = re.compile(r"(?:begin|start)\b", re.IGNORECASE)
_CONSTRAINTS = re.compile(r"set\s+constraints\b", re.IGNORECASE)


def match_control(statement: str) -> re.Match[str] | None:
    """The statement's first words if they set or end a savepoint or the transaction.

    Groups: `save`, `back`, `release`, `end` (whichever it is) and `name`.
    """
    return _CONTROL.match(statement, _skip_comments(statement))


def ends_transaction(statement: str) -> str | None:
    """`commit` or `rollback` if the statement ends the transaction so; else None."""
    matched = match_control(statement)
    if matched is None or not matched["end"]:
        return None
    return "rollback" if matched["end"].lower() in ("rollback", "abort") else "commit"


def is_passive(statement: str) -> bool:
    """The statement writes no row by itself; a SELECT may still call a function that does."""
    return _PASSIVE.match(statement, _skip_comments(statement)) is not None


def may_redirect(statement: str) -> bool:
    """After it a table's name may mean another table: search path, role, or a new table.

    Also true for many statements that change nothing, which costs a query each. A change made
    inside a function is not recognised.
    """
    start = _skip_comments(statement)
    return (
        _NEUTRAL.match(statement, start) is None
        or _INTO.match(statement, start) is not None
        or _REDIRECTING.search(statement, start) is not None
    )


def changes_schema(statement: str, *, strict: bool = False) -> bool:
    """Postgres may refuse the statement while a table has deferred checks that wait.

    True for whatever is not known to leave tables alone, with `strict` for whatever does not
    concern rows. DO and CALL are told by `runs_routine`.
    """
    known = _CONCERNS_ROWS if strict else _LEAVES_TABLES
    return any(_begins_schema_change(one, known) for one in _list_pieces(statement))


def _begins_schema_change(statement: str, known: re.Pattern[str]) -> bool:
    start = _skip_comments(statement)
    if _TRACKS.match(statement, start):
        return True
    harmless = known.match(statement, start) or _ROUTINE.match(statement, start)
    return harmless is None and start < len(statement)


def runs_routine(statement: str) -> bool:
    """The statement is DO or CALL: it may write rows, alter tables, or both."""
    return _ROUTINE.match(statement, _skip_comments(statement)) is not None


def may_alter(statement: str) -> bool:
    """After it a tracked table may have other columns, types or triggers."""
    return any(_begins_alteration(one) for one in _list_pieces(statement))


def _begins_alteration(statement: str) -> bool:
    start = _skip_comments(statement)
    return bool(_ALTERS.match(statement, start) or _TRACKS.match(statement, start))


def calls_function(statement: str) -> bool:
    """The statement is a SELECT of a function's result and nothing else."""
    start = _skip_comments(statement)
    called = _CALL.match(statement, start)
    return called is not None and _FROM.search(statement, start) is None


def writes_rows(statement: str, *, functions: bool = True) -> bool:
    """The statement may write rows, or with `functions` a function in it; it ends no transaction.

    DO and CALL are left out: they may end transactions themselves.
    """
    pieces = _list_pieces(statement)
    writes = any(
        _WRITES.match(one, _skip_comments(one)) or (functions and calls_function(one))
        for one in pieces
    )
    return writes and not any(map(_controls, pieces))


def _controls(statement: str) -> bool:
    begins = _BEGINS.match(statement, _skip_comments(statement))
    return begins is not None or match_control(statement) is not None


def sets_constraints(statement: str) -> bool:
    """The statement is SET CONSTRAINTS, which may run the guards' check before COMMIT."""
    return _CONSTRAINTS.match(statement, _skip_comments(statement)) is not None


def _list_pieces(statement: str) -> list[str]:
    return split_script(statement) if ";" in statement else [statement]


def is_text(compiled: Any) -> bool:
    """The statement is text, or SQLAlchemy's clause for a savepoint; not a construct on rows."""
    statement = getattr(compiled, "statement", None)
    return statement is None or isinstance(statement, sa.TextClause) or hasattr(statement, "ident")


def _skip_comments(statement: str) -> int:
    """Where the statement begins, after white space and comments."""
    place = 0
    while True:
        found = _SPACE_OR_COMMENT.match(statement, place)
        if found:
            place = found.end()
        elif statement.startswith("/*", place):
            place = skip_comment(statement, place)
        else:
            return place
