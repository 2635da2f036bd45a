"""The command that makes a copied log this database's own: incarnate.

Must not guess which of both a database is: that is the operator's to say. It is run in a hurry,
after a dump was loaded or a server upgraded: what was done is told by names.
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
@click.option(
    "--copy", is_flag=True, help="It is a copy beside the original: it forgets its archives."
)
@click.option(
    "--replace", is_flag=True, help="It replaces the original: it takes its archives over."
)
@click.option("--yes", is_flag=True, help="Do not ask, which is done on a terminal only.")
@standard_options
@pass_invocation
def incarnate(invocation: Invocation, *, copy: bool, replace: bool, yes: bool) -> None:
    """Make the log of a copied database its own.

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
