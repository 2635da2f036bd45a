"""What a process with certain models writes into one of its tables: by Core, or by the ORM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.orm import Session, load_only, registry
from sqlalchemy.orm.attributes import set_committed_value

Write: TypeAlias = Callable[[Session], object]
DELETED = 2
"""The key, in the column `id`, of the row that is deleted."""


def list_writes(table: sa.Table, values: Mapping[str, Any], *, how: str) -> Sequence[Write]:
    """An insert of this row, an update of it and a delete of another; a transaction each."""
    return _write_by_core(table, values) if how == "Core" else _write_by_orm(table, values)


def _write_by_core(table: sa.Table, values: Mapping[str, Any]) -> Sequence[Write]:
    changed = {name: value for name, value in values.items() if name != "id"}
    return (
        lambda session: session.execute(table.insert().values(values)),
        lambda session: session.execute(
            table.update().where(table.c.id == values["id"]).values(changed)
        ),
        lambda session: session.execute(table.delete().where(table.c.id == DELETED)),
    )


def _write_by_orm(table: sa.Table, values: Mapping[str, Any]) -> Sequence[Write]:
    mapped: type[Any] = type("Mapped", (), {})
    registry(metadata=table.metadata).map_imperatively(mapped, table)

    def find(session: Session, key: Any) -> Any:
        # The key alone: SQLAlchemy does not read a label that the model's enum has not.
        found = sa.select(mapped).where(table.c.id == key).options(load_only(mapped.id))
        return session.scalars(found).first()

    def add(session: Session) -> None:
        row = mapped()
        for name, value in values.items():
            setattr(row, name, value)
        session.add(row)

    def change(session: Session) -> None:
        row = find(session, values["id"])
        for name, value in values.items():
            # NULL first, so that the flush writes it.
            if row is not None and name != "id":
                set_committed_value(row, name, None)
                setattr(row, name, value)

    def delete(session: Session) -> None:
        row = find(session, DELETED)
        if row is not None:
            session.delete(row)

    return add, change, delete


def touch(session: Session, tables: Sequence[sa.Table]) -> None:
    """Write a row of the first table that has any as it is, by Core."""
    for table in tables:
        keys = list(table.primary_key)
        others = [c for c in table.columns if not (c.primary_key or c.computed or c.identity)]
        found = session.execute(sa.select(*keys).order_by(*keys).limit(1)).first()
        if found is not None and others:
            same = [key == value for key, value in zip(keys, found, strict=True)]
            statement = sa.update(table).where(*same).values({others[0].name: others[0]})
            session.execute(statement)
            return
