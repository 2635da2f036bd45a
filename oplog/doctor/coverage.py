"""Judges whether an application's catalog has the tables that it should have. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oplog.catalog import TypeCatalog
from oplog.doctor.facts import Facts
from oplog.finding import Finding, make_notice, make_problem


def judge_coverage(facts: Facts, catalog: TypeCatalog, missing: Sequence[str]) -> Iterator[Finding]:
    """A finding for each mapped table that the catalog lacks, and for an empty catalog.

    `missing` are tables of the application's models.
    """
    for name in missing:
        yield make_problem(
            "catalog-incomplete",
            name,
            message="the models have this table, and the catalog neither logs it nor leaves it out "
            "with a reason: what the application writes to it is refused if it is guarded, and "
            "passes unseen if not",
            hint="make the catalog when every module with models is imported (with automap, after "
            'prepare()), or say why not: untracked={"table": "reason"}',
        )
    if catalog.types:
        return
    guarded = [tree.root.name for tree in facts.trees if any(p.triggers for p in tree.parts)]
    make = make_problem if guarded else make_notice
    names = f"; guarded are {', '.join(sorted(guarded))}" if guarded else ""
    yield make(
        "catalog-empty",
        f"database {facts.database}",
        message=f"the catalog has no tables: this application logs nothing{names}",
        hint="make the catalog from the models, when every module with models is imported",
    )
