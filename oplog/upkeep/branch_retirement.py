"""Lets go of lost branches that nobody needs any more.

A head names a limited number of them. Only the oldest go: whether the log still leads through the
place where a branch was left is known from the branches after it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.archive.format.head import Branch, Head
from oplog.archive.ownership import require_owner
from oplog.errors import ConfigurationError
from oplog.sync.epoch import EpochNeeded
from oplog.sync.exact_view import take_turn
from oplog.sync.exporter import Exporter


@dataclass(frozen=True, slots=True)
class RetirementReport:
    """Lost branches that no head names any more: their `generations`, and `records` in all.

    `kept` is how many are left. `dry_run` says that this is what would be done.
    """

    generations: tuple[int, ...]
    records: int
    kept: int
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


def retire_branches(
    exporter: Exporter, engine: Engine, *, through: int, dry_run: bool = False
) -> RetirementReport:
    """Publish a head without the lost branches of generations up to `through`.

    `oplog collect` deletes later what only they had, which nothing brings back then. Raises
    `ConfigurationError` if there are none, and what publishing raises.
    """
    archive = exporter.archive
    require_owner(engine, archive, schema=exporter.log.schema)
    head = archive.read_head()
    gone, kept = _split(head, through)
    if not gone:
        raise ConfigurationError(
            f"{archive.url} has no lost branch of generation {through} or before",
            hint="oplog fork inspect lists them",
        )

    def attempt(connection: Connection) -> EpochNeeded | None:
        nonlocal gone, kept
        # Also where the database has lost records: the list must be shorter before it can fork.
        context = exporter.find_context(connection)
        if not exporter.epoch.is_current(context):
            return EpochNeeded(context)
        gone, kept = _split(context.head, through)
        draft = replace(context.head, branches=kept)
        exporter.epoch.publish(connection, context, draft, receipt=False)
        return None

    if not dry_run:
        take_turn(lambda: exporter.epoch.run(engine, attempt))
    return RetirementReport(
        generations=tuple(branch.generation for branch in gone),
        records=sum(branch.last - branch.sequence for branch in gone),
        kept=len(kept),
        dry_run=dry_run,
    )


def _split(head: Head, through: int) -> tuple[tuple[Branch, ...], tuple[Branch, ...]]:
    gone = tuple(branch for branch in head.branches if branch.generation <= through)
    return gone, head.branches[len(gone) :]
