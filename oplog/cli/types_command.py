"""`oplog types list`, `proto` and `sync`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count, show_guards
from oplog.payload.shape import Shape


@click.group()
@standard_options
def types() -> None:
    """List the types that the log knows, and store new ones."""


@types.command(name="list")
@standard_options
@pass_invocation
def list_types(invocation: Invocation) -> None:
    """List every stored type with its revisions, columns and field numbers."""
    log = invocation.load_log()
    with invocation.connect() as connection:
        report = log.list_types(connection)
    invocation.emit(
        report.to_json, lambda: (line for shape in report.shapes for line in _show(shape))
    )
    if report.not_stored:
        names = ", ".join(report.not_stored)
        say(f"declared and not stored yet: {names}; oplog types sync stores them")


@types.command()
@click.argument("type_name", metavar="TYPE")
@click.option(
    "--revision", type=click.IntRange(min=1), help="Revision to print; the default is the newest."
)
@standard_options
@pass_invocation
def proto(invocation: Invocation, *, type_name: str, revision: int | None) -> None:
    """Print the .proto text of a stored type."""
    log = invocation.load_log()
    with invocation.connect() as connection:
        report = log.print_proto(connection, type_name, revision=revision)
    invocation.emit(report.to_json, lambda: _show_files(report.files))


def _show_files(files: Mapping[str, str]) -> Iterator[str]:
    for name, text in files.items():
        if len(files) > 1:
            yield f"// {name}"
        yield from text.splitlines()


@types.command()
@click.option("--dry-run", is_flag=True, help="Show what would be stored, and store nothing.")
@standard_options
@pass_invocation
def sync(invocation: Invocation, *, dry_run: bool) -> None:
    """Store the types and the key that the application will write with.

    An application does so itself with its first transaction; doing it ahead finds models and
    tables that disagree before the first request does. Partitions of tracked tables that were made
    later are guarded against TRUNCATE, if the role may.
    """
    log = invocation.load_log()
    # Waiting for another process that stores the same type must not end in a conflict.
    with invocation.connect(
        isolation="READ COMMITTED", read_only=False, commit=not dry_run
    ) as connection:
        report = log.store_types(connection)
    document = {**report.to_json(), "dry_run": dry_run}
    stored = report.shapes
    invocation.emit(lambda: document, lambda: _show_stored(stored, document))
    verb = "would be stored" if dry_run else "stored"
    say(
        f"{show_count(len(stored), 'type')} {verb}"
        if stored
        else "the log knows every type already"
    )


def _show_stored(shapes: Sequence[Shape], document: Mapping[str, Any]) -> Iterator[str]:
    for shape in shapes:
        yield from _show(shape)
    yield from show_guards(document)


def _show(shape: Shape) -> Iterator[str]:
    yield (
        f"{escape(shape.type_name)}  revision {shape.revision}  "
        f"table {escape(shape.schema)}.{escape(shape.table)}  aggregate {escape(shape.aggregate)}"
    )
    for column in shape.columns:
        mark = "  key" if column.primary_key else ""
        yield f"  {column.number:>3}  {escape(column.name)}  {column.pg_type}{mark}"
    for name, reason in shape.excluded.items():
        yield f"    -  {escape(name)}  excluded: {escape(reason)}"
