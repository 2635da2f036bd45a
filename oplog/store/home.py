"""Which server's transaction ids the records of a log have, and which database this is.

A copied log looks like any other: ids of another server's transactions may lie in the future here,
or belong to running transactions. So the log names its home, and code that compares ids asks
first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sqlalchemy.engine import Connection

from oplog.errors import ForeignServerError, SchemaVersionError
from oplog.postgres.quoting import (
    quote,
)
from oplog.schema.tables import (
    HOME_PREFIX,
    VERSION,
    home_statement,
)
from oplog.store.version import parse_version, refuse_other_definition, require_version

REMEDIES = (
    "if this database replaces the original: oplog incarnate --replace; if it is a copy beside "
    "it: oplog incarnate --copy"
)
"""What the owner can do about a log that is not at home; neither changes a row of the tables."""
_HOME = re.compile(re.escape(HOME_PREFIX) + r"server (\d+), database (\d+), row (\d+)")


class Identity(NamedTuple):
    """One database of one server: its copies are others."""

    system_identifier: str
    database: int

    def __str__(self) -> str:
        return f"database {self.database} of server {self.system_identifier}"


class Home(NamedTuple):
    """Where a log was created, restored, or declared to be; `row` was its identity's xmin then."""

    identity: Identity
    row: str


class Homing(NamedTuple):
    """The home that a log names, None if it names none, and the database it is in."""

    version: str
    home: Home | None
    here: Identity


def read_homing(connection: Connection, schema: str) -> Homing:
    """What the log in `schema` says of itself, and this database."""
    s = quote(schema)
    version, home, identifier, database = connection.exec_driver_sql(
        "SELECT pg_catalog.obj_description(pg_catalog.to_regclass(%s), 'pg_class'), "
        "pg_catalog.obj_description(pg_catalog.to_regclass(%s), 'pg_class'), "
        "c.system_identifier::text, d.oid::bigint "
        "FROM pg_catalog.pg_control_system() c, "
        "pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
        (f"{s}.oplog_record", f"{s}.oplog_log"),
    ).one()
    here = Identity(identifier, database)
    return Homing(str(version or ""), parse_home(home or ""), here)


def parse_home(comment: str) -> Home | None:
    """The home that a comment names; None if it is somebody else's."""
    found = _HOME.fullmatch(comment)
    return None if found is None else Home(Identity(found[1], int(found[2])), found[3])


def require_home(connection: Connection, schema: str) -> Identity:
    """Raise unless the log in `schema` is current and at home on this server; who this is."""
    found, home = _require_defined(connection, schema)
    here = found.here
    if home.system_identifier != here.system_identifier:
        raise ForeignServerError(
            f"this log was written on server {home.system_identifier}, and this is server "
            f"{here.system_identifier}: the transaction ids of its records mean nothing here, so "
            "which of them are visible cannot be told",
            hint=f"the database came from a dump, or was upgraded; writing goes on. {REMEDIES}",
        )
    return here


def require_defined(connection: Connection, schema: str) -> None:
    """Raise `SchemaVersionError` unless the log has all that its version has by now."""
    _require_defined(connection, schema)


def _require_defined(connection: Connection, schema: str) -> tuple[Homing, Identity]:
    found = read_homing(connection, schema)
    if parse_version(found.version) is None:
        refuse_other_definition(connection, schema)
    require_version(found.version, schema)
    if found.home is None:
        where = "" if schema == "oplog" else f", schema={schema!r}"
        raise SchemaVersionError(
            f"the log in schema {schema!r} does not say which server it was written on",
            hint=f"add this line to a migration: op.upgrade_oplog(version={VERSION}{where})",
        )
    return found, found.home.identity


def write_home(connection: Connection, schema: str) -> None:
    """Make this database the log's home, in the transaction that makes its ids fit."""
    connection.exec_driver_sql(
        home_statement(schema, anew=True), execution_options={"no_parameters": True}
    )
