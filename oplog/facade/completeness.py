"""Whether a catalog has all tables of an application's models, looked at when a log is attached.

A catalog that was made before the models were imported, or before automap made them, is one that
logs nothing of what came after, and compares nothing of it either.
"""

from __future__ import annotations

import warnings

from oplog.catalog import TypeCatalog
from oplog.declared_models import Models, list_sources
from oplog.errors import CatalogWarning, ConfigurationError

_SHOWN = 20
"""Number of tables that a message names."""
_HINT = (
    "make the catalog when every module with models is imported (with automap, after prepare()), "
    'or say why not: untracked={"table": "reason"}'
)


class Completeness:
    """A catalog, and the models of which it has to have every table."""

    def __init__(self, catalog: TypeCatalog, expect: Models | None) -> None:
        # Not listed here: what is mapped until a session is attached has to be in the catalog too.
        self._expect = None if expect is None else list_sources(expect)
        self._catalog = catalog

    def list_missing(self) -> list[str]:
        """Tables that are mapped by now, and neither logged nor untracked.

        Of the models that are expected, and of those that the catalog was made from.
        """
        expected = [] if self._expect is None else self._catalog.list_missing(self._expect)
        return sorted({*expected, *self._catalog.list_missing()})

    def check(self) -> None:
        """Refuse a catalog that lacks an expected table; warn of one that others are missing from.

        Raises `ConfigurationError`, and issues `CatalogWarning`.
        """
        missing = [] if self._expect is None else self._catalog.list_missing(self._expect)
        if missing:
            raise ConfigurationError(
                f"the models have tables that are not in the catalog: {_name(missing)}", hint=_HINT
            )
        later = self._catalog.list_missing()
        if later:
            _warn(
                f"the models have tables that are not in the catalog: {_name(later)}; it was made "
                "before them, or from another MetaData. What is written to them is not logged: "
                + _HINT
            )
        elif not self._catalog.types and not self._catalog.learns:
            _warn(f"the catalog has no tables, so nothing is logged: {_HINT}")


def _name(tables: list[str]) -> str:
    more = f" and {len(tables) - _SHOWN} more" if len(tables) > _SHOWN else ""
    return ", ".join(tables[:_SHOWN]) + more


def _warn(text: str) -> None:
    # The line that attaches: this, `check`, and `attach` are not it.
    warnings.warn(text, CatalogWarning, stacklevel=4)
