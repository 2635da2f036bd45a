"""What tests of refills share: the type that a migration left behind, bound as it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog import LoggedEntry, Oplog
from oplog.adoption import AdoptionTarget, RefillReport, log_rewritten
from oplog.binding import bind_catalog
from oplog.type_binding import BoundType


def make_target(log: Oplog) -> AdoptionTarget:
    """The log, as adoption is given it."""
    return AdoptionTarget(
        store=log.store,
        keyring=log.keyring,
        sealer=log._log.sealer,
        codec=log._log.codec,
        on_event=log._log.on_event,
    )


def bind(connection: Connection, log: Oplog, type_name: str) -> BoundType:
    """The type in the revision of now, stored if it is new, before its rows are logged again."""
    binding = bind_catalog(connection, log.catalog, store=log.store, keyring=log.keyring)
    stored = [one for one in log.store.list_types(connection) if one.type_name == type_name]
    return replace(binding.by_name[type_name], shape=stored[-1])


def migrate(engine: Engine, log: Oplog, type_name: str, *statements: str) -> BoundType:
    """Run DDL, and bind the type afterwards."""
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    with engine.begin() as connection:
        return bind(connection, log, type_name)


def refill(
    connection: Connection, log: Oplog, bound: BoundType, *, own: bool = True, **more: Any
) -> RefillReport:
    """Log again what the revision says was rewritten."""
    options = {"change": bound.shape.change, "target": make_target(log), "own": own, **more}
    return log_rewritten(connection, bound, **options)


def list_refills(entries: Sequence[LoggedEntry]) -> list[LoggedEntry]:
    """Those that log rows again."""
    return [entry for entry in entries if "refilled" in entry.metadata]


def tell_columns(entries: Sequence[LoggedEntry]) -> dict[Any, Mapping[str, Any]]:
    """What refills say of each row, by its key, or its keys; each row once."""
    told: dict[Any, Mapping[str, Any]] = {}
    for entry in entries:
        for operation in entry.operations:
            key = tuple(operation.key.values())
            place = key[0] if len(key) == 1 else key
            assert place not in told
            told[place] = operation.fields
    return told
