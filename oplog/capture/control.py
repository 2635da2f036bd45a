"""Recognises statements, given as text, that control a transaction or the meaning of names.

Pure: compares the first words of a statement, after comments, which in Postgres may be nested.
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

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
_COMMENT_MARK = re.compile(r"/\*|\*/")


def match_control(statement: str) -> re.Match[str] | None:
    """The statement's first words if they set or end a savepoint or the transaction.

    Groups: `save`, `back`, `release`, `end` (whichever it is) and `name`.
    """
    return _CONTROL.match(statement, _skip_comments(statement))


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
            place = _skip_block(statement, place)
        else:
            return place


def _skip_block(statement: str, place: int) -> int:
    depth = 0
    for mark in _COMMENT_MARK.finditer(statement, place):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(statement)
