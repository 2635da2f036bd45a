"""The part of `Oplog` that shortens the log in the database.

Every method is one call into the module that does the work.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.facade.foundation import Foundation
from oplog.upkeep.prune import PruneReport, prune_log


class RetainingOplog(Foundation):
    """What an operator does with a log that has grown long."""

    def prune(
        self,
        engine: Engine,
        archive: Archive,
        *,
        keep: timedelta,
        dry_run: bool = False,
        force: Collection[str] = (),
    ) -> PruneReport:
        """Remove entries from the database that are older than `keep` and in `archive`.

        Whole transactions, oldest first, each batch in a transaction of its own, after what is
        in the archive was read and compared with the rows about to go. Interrupted, it is run
        again. Used idempotency keys stay used. Afterwards `read`, `history`, `as_of`, `replay`
        and `verify` need the archive for what is gone. `dry_run` checks and removes nothing;
        `force` names consumers that need not have seen what goes. Needs no keys, and the role
        that owns the log. Raises `ConflictError` for a consumer that is behind and while somebody
        else prunes, `ConfigurationError`, `PrunedError` for another archive than before,
        `LogForkedError`, `ChainBrokenError`, and what a damaged archive raises.
        """
        return prune_log(
            engine, archive, keep=keep, schema=self.schema, dry_run=dry_run, force=force
        )
