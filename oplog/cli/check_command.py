"""`oplog check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from oplog.cli.argument import SHARE
from oplog.cli.evidence import keep_evidence
from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    archive_option,
    database_option,
    pass_invocation,
    standard_options,
)
from oplog.cli.presentation import show_count, show_problems, show_quarantined, show_size
from oplog.cli.progress import show_work
from oplog.cli.trust_option import expect_option


@click.command()
@database_option
@click.option("--alone", is_flag=True, help="Check the archive only, even if a database is given.")
@click.option(
    "--sample",
    type=SHARE,
    help="Read only this share of segments and chunks, such as 5%; check that the others exist.",
)
@archive_option
@expect_option
@standard_options
@pass_invocation
def check(invocation: Invocation, *, alone: bool, sample: float | None) -> int:
    """Verify every object of the archive, and compare it with the log.

    Needs no keys. Without a database, or with --alone, the archive is verified by itself.
    Writes nothing. Exit code 3 when something is wrong that does harm.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with show_work("checking") as progress:
        if alone or not invocation.database:
            report = log.check(archive, sample=sample, progress=progress)
        else:
            with invocation.open_engine() as engine:
                report = log.check(archive, engine, sample=sample, progress=progress)
    compared = not alone and bool(invocation.database)
    document = {"compared": compared, **report.to_json()}
    invocation.emit(lambda: document, lambda: _show_check(document))
    if report.forked is not None:
        say(keep_evidence(report.forked))
    return 0 if report.ok else DIFFERENCES


def _show_check(document: Mapping[str, Any]) -> Iterator[str]:
    yield from show_problems(document["problems"])
    with_what = "compared with the log" if document["compared"] else "not compared with a database"
    yield (
        f"{'sound' if document['ok'] else 'DAMAGED'}: {show_count(document['objects'], 'object')}, "
        f"{show_size(document['bytes'])} read, through sequence {document['sequence']} of "
        f"generation {document['generation']}, {with_what}"
    )
    yield from show_quarantined(document["quarantined"])
