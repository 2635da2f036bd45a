"""What forms of statements a revision executes: DDL and DML without names and values."""

from __future__ import annotations

import re
from collections.abc import Iterable

SKIPPED = re.compile(
    r"^(SELECT|SHOW|SET|RESET|SAVEPOINT|RELEASE|ROLLBACK|COMMIT|BEGIN|WITH RECURSIVE)\b"
    r"|alembic_version",
    re.IGNORECASE,
)
COLUMN = r'(?:"[^"]+"|[\w.]+)'
FORMS = (
    (rf"ALTER TABLE .*RENAME (?:COLUMN )?{COLUMN} TO", "ALTER TABLE RENAME COLUMN"),
    (r"ALTER TABLE .*RENAME CONSTRAINT", "ALTER TABLE RENAME CONSTRAINT"),
    (r"ALTER TABLE .*RENAME TO", "ALTER TABLE RENAME TO"),
    (r"ALTER TABLE .*ADD COLUMN .*\bSERIAL\b", "ALTER TABLE ADD COLUMN serial"),
    (r"ALTER TABLE .*ADD COLUMN .*GENERATED", "ALTER TABLE ADD COLUMN GENERATED"),
    (
        r"ALTER TABLE .*ADD COLUMN .*DEFAULT.*\(.*NOT NULL",
        "ALTER TABLE ADD COLUMN DEFAULT expression NOT NULL",
    ),
    (r"ALTER TABLE .*ADD COLUMN .*DEFAULT .*NOT NULL", "ALTER TABLE ADD COLUMN DEFAULT NOT NULL"),
    (r"ALTER TABLE .*ADD COLUMN .*DEFAULT .*\(", "ALTER TABLE ADD COLUMN DEFAULT expression"),
    (r"ALTER TABLE .*ADD COLUMN .*DEFAULT", "ALTER TABLE ADD COLUMN DEFAULT constant"),
    (r"ALTER TABLE .*ADD COLUMN .*NOT NULL", "ALTER TABLE ADD COLUMN NOT NULL (empty table)"),
    (r"ALTER TABLE .*ADD COLUMN", "ALTER TABLE ADD COLUMN"),
    (r"ALTER TABLE .*DROP COLUMN", "ALTER TABLE DROP COLUMN"),
    (r"ALTER TABLE .*TYPE .*USING", "ALTER TABLE ALTER COLUMN TYPE USING"),
    (r"ALTER TABLE .*\bTYPE\b", "ALTER TABLE ALTER COLUMN TYPE"),
    (r"ALTER TABLE .*SET NOT NULL", "ALTER TABLE SET NOT NULL"),
    (r"ALTER TABLE .*DROP NOT NULL", "ALTER TABLE DROP NOT NULL"),
    (r"ALTER TABLE .*(SET|DROP) DEFAULT", "ALTER TABLE SET/DROP DEFAULT"),
    (r"ALTER TABLE .*ADD (CONSTRAINT \S+ )?PRIMARY KEY", "ALTER TABLE ADD PRIMARY KEY"),
    (r"ALTER TABLE .*ADD (CONSTRAINT \S+ )?FOREIGN KEY", "ALTER TABLE ADD FOREIGN KEY"),
    (r"ALTER TABLE .*ADD (CONSTRAINT \S+ )?UNIQUE", "ALTER TABLE ADD UNIQUE"),
    (r"ALTER TABLE .*ADD (CONSTRAINT \S+ )?CHECK", "ALTER TABLE ADD CHECK"),
    (r"ALTER TABLE .*DROP CONSTRAINT .*_pkey", "ALTER TABLE DROP CONSTRAINT (primary key)"),
    (r"ALTER TABLE .*DROP CONSTRAINT", "ALTER TABLE DROP CONSTRAINT"),
    (r"ALTER TYPE .*RENAME VALUE", "ALTER TYPE RENAME VALUE"),
    (r"ALTER TYPE .*ADD VALUE", "ALTER TYPE ADD VALUE"),
    (r"ALTER TYPE .*RENAME TO", "ALTER TYPE RENAME TO"),
    (r"CREATE TABLE .*\bAS\b\s+SELECT", "CREATE TABLE AS SELECT"),
    (r"CREATE (TEMP|TEMPORARY) TABLE", "CREATE TEMP TABLE"),
    (r"CREATE (UNIQUE )?INDEX CONCURRENTLY", "CREATE INDEX CONCURRENTLY"),
    (r"CREATE UNIQUE INDEX", "CREATE UNIQUE INDEX"),
    (r"DROP INDEX CONCURRENTLY", "DROP INDEX CONCURRENTLY"),
    (r"(?:WITH\b.*)?INSERT INTO .*ON CONFLICT", "INSERT ON CONFLICT"),
    (r"(?:WITH\b.*)?INSERT INTO .*SELECT", "INSERT SELECT"),
    (r"UPDATE .*\bFROM\b", "UPDATE FROM"),
    (r"DELETE .*\bUSING\b", "DELETE USING"),
    (r"WITH\b.*\bUPDATE\b", "WITH … UPDATE"),
    (r"WITH\b.*\bDELETE\b", "WITH … DELETE"),
    (r"WITH\b", ""),
)
PATTERNS = [(re.compile(rf"^{text}", re.IGNORECASE), form) for text, form in FORMS]
COMMENT = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)


def name_form(statement: str) -> str:
    """The form of one statement; nothing for one that changes nothing."""
    text = " ".join(COMMENT.sub(" ", statement).split()).rstrip(";")
    if not text or SKIPPED.search(text):
        return ""
    for pattern, form in PATTERNS:
        if pattern.search(text):
            return form
    words = text.upper().split()
    return " ".join(words[:2]) if words[0] in {"CREATE", "DROP", "ALTER"} else words[0]


def list_forms(statements: Iterable[str]) -> list[str]:
    """The forms in order, each once."""
    return list(dict.fromkeys(form for one in statements if (form := name_form(one))))
