"""Changes of what the log's SQL functions mean, by hand: to Python they are only text.

Each has a name, the text it changes and what it becomes. The text must stand in the source, and
at the place of its number where it stands there more than once: otherwise the functions were
rewritten, and these lists have to follow. There is a list for each module of such text.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.mutants import sql_append, sql_checks, sql_hashes
from tests.mutants.mutation import Mutant
from tests.mutants.sql_change import Change, make_mutant

CHANGES: Mapping[str, tuple[Change, ...]] = {
    "sql": sql_append.CHANGES,
    "sql_checks": sql_checks.CHANGES,
    "sql_hashes": sql_hashes.CHANGES,
}
"""By the name of the target."""


def list_sql_mutants(target: str, source: str) -> list[Mutant]:
    """A mutant for each change of that target, whose source this is."""
    return [make_mutant(change, source) for change in CHANGES[target]]
