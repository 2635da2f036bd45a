"""`oplog incarnate`.

The operator says whether the database is a copy or replaces the original: the database cannot
know.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count


@click.command()
@click.option("--copy", is_flag=True, help="Treat the database as a copy: forget its archives.")
@click.option(
    "--replace", is_flag=True, help="Treat the database as the successor: take the archives over."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@standard_options
@pass_invocation
def incarnate(invocation: Invocation, *, copy: bool, replace: bool, yes: bool) -> None:
    """Give a copied database a log of its own.

    For one that came from a dump, a template, a clone of its disk or an upgrade. Changes no row
    of your tables and nothing in an archive. Needs no keys, and the role that owns the log.
    """
    if copy == replace:
        raise click.UsageError("say --copy or --replace")
    log = invocation.load_log()
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        what = "take over the archives of the original" if replace else "forget all archives"
        where = escape(invocation.name_database())
        click.confirm(f"make database {where} one of its own, and {what}?", abort=True, err=True)
    with invocation.open_engine() as engine, engine.connect() as connection:
        report = log.incarnate(connection, replaces_original=replace)
    document = report.to_json()
    invocation.emit(lambda: document, lambda: _show(document))
    for name in document["strangers"]:
        say(f"warning: the place of {escape(name)} is of another history: reset it")


def _show(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"at home in database {document['database']} of server {document['server']}"
    entries = show_count(document["entries"], "entry", many="entries")
    yield f"{entries} given ids of this server"
    for name in document["consumers"]:
        yield f"goes on: {escape(name)}"
    verb = "goes on with" if document["replaces_original"] else "forgotten"
    for url in document["archives"]:
        yield f"{verb}: {escape(url)}"
