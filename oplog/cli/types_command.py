"""Commands on the types that the log knows: list, proto, sync.

Must not know how a shape is derived. The hard thing is that a type's name comes from the log
and from the catalog, which need not agree: `list` shows both, `sync` makes the log follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from sqlalchemy.engine import Connection

from oplog.binding import bind_catalog
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count
from oplog.cli.prototext import print_files
from oplog.errors import UnknownTypeError
from oplog.facade import Oplog
from oplog.payload.shape import Shape


@click.group()
@standard_options
def types() -> None:
    """The types that the log knows, and new ones."""


@types.command(name="list")
@standard_options
@pass_invocation
def list_types(invocation: Invocation) -> None:
    """Every stored type with its revisions, its columns and their field numbers."""
    log = invocation.load_log()
    with invocation.connect() as connection:
        shapes = _read_shapes(log, connection)
    unstored = sorted(set(log.catalog.types) - {shape.type_name for shape in shapes})
    invocation.emit(
        lambda: {"types": [_describe(shape) for shape in shapes], "not_stored": unstored},
        lambda: (line for shape in shapes for line in _show(shape)),
    )
    if unstored:
        say(f"declared and not stored yet: {', '.join(unstored)}; oplog types sync stores them")


@types.command()
@click.argument("type_name", metavar="TYPE")
@click.option("--revision", type=click.IntRange(min=1), help="The default is the newest.")
@standard_options
@pass_invocation
def proto(invocation: Invocation, *, type_name: str, revision: int | None) -> None:
    """The .proto text of a stored type, from which any language can read its rows."""
    log = invocation.load_log()
    with invocation.connect() as connection:
        shapes = _read_shapes(log, connection)
    found = [
        shape
        for shape in shapes
        if shape.type_name == type_name and revision in (None, shape.revision)
    ]
    if not found:
        names = sorted({shape.type_name for shape in shapes})
        which = f"{type_name!r}" if revision is None else f"{type_name!r} revision {revision}"
        raise UnknownTypeError(
            f"the log has no type {which}",
            hint=f"it has {', '.join(names) or 'no types'}; oplog types sync stores new ones",
        )
    shape = found[-1]
    files = print_files(shape, retired=_list_retired(shape, shapes))
    document = {
        "type": type_name,
        "revision": shape.revision,
        "message": shape.message_name,
        "files": files,
    }
    invocation.emit(lambda: document, lambda: _show_files(files))


def _list_retired(shape: Shape, shapes: Sequence[Shape]) -> list[int]:
    """Numbers that other revisions of the type gave to columns which this one lacks."""
    used = {
        number
        for other in shapes
        if other.type_name == shape.type_name
        for number in other.by_number
    }
    return sorted(used - {field.number for field in shape.columns})


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
    tables that disagree before the first request does.
    """
    log = invocation.load_log()
    # Waiting for another process that stores the same type must not end in a conflict.
    with invocation.connect(
        isolation="READ COMMITTED", read_only=False, commit=not dry_run
    ) as connection:
        before = {(shape.type_name, shape.revision) for shape in _read_shapes(log, connection)}
        bind_catalog(connection, log.catalog, store=log.store, keyring=log.keyring)
        stored = [
            shape
            for shape in _read_shapes(log, connection)
            if (shape.type_name, shape.revision) not in before
        ]
    document = {"stored": [_describe(shape) for shape in stored], "dry_run": dry_run}
    invocation.emit(lambda: document, lambda: (line for shape in stored for line in _show(shape)))
    verb = "would be stored" if dry_run else "stored"
    say(
        f"{show_count(len(stored), 'type')} {verb}"
        if stored
        else "the log knows every type already"
    )


def _read_shapes(log: Oplog, connection: Connection) -> Sequence[Shape]:
    log.store.require_current(connection)
    return log.store.list_types(connection)


def _describe(shape: Shape) -> Mapping[str, Any]:
    return {"name": shape.type_name, "revision": shape.revision, **shape.to_json()}


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
