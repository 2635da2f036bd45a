"""Sends sessions to a server as one of its roles, and judges what each of them left.

The law: a guarded table is as it was, or each table that changed is told by what the log got.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.errors import Error, error_from_result
from psycopg.pq import ExecStatus

from oplog.schema.grants import RoleKind, list_grants
from oplog.schema.tables import create_statements, track_statements
from oplog.testing import EmbeddedServer
from tests.sessions.around import Around, list_settings
from tests.sessions.writes import LONG

STRANGER, AUDITOR, APPLICATION, KEEPER, CHIEF = ROLES = (
    "stranger",
    "auditor",
    "application",
    "keeper",
    "chief",
)
"""Rights on the tables alone, reads the log, writes it, may bypass, may do all of it."""
OTHER = "other"
"""Whose functions they call."""
APPENDING = (APPLICATION, CHIEF)
BYPASSING = (KEEPER, CHIEF)
GUARDED = ("account", "child", "whole", *LONG)
EMPTY = tuple(f"DELETE FROM {name}" for name in (*GUARDED, "parent"))
SEED = (
    *EMPTY,
    "INSERT INTO account (id, owner, balance) VALUES (1, 'a', 10), (2, 'b', 20), (3, 'c', 30)",
    "INSERT INTO parent SELECT generate_series(0, 3)",
    "INSERT INTO child VALUES (1, 1, 0, 0), (2, 0, 2, 0), (3, 0, 0, 3)",
    "INSERT INTO whole VALUES (1, 1), (2, 2), (60, 3)",
    *(f"INSERT INTO {name} VALUES (1, 1)" for name in LONG),
)
_OBJECTS = (
    """CREATE TABLE account (id integer PRIMARY KEY, owner text NOT NULL, balance numeric(12,2),
  note text DEFAULT 'fresh', twice numeric GENERATED ALWAYS AS (balance * 2) STORED)""",
    "CREATE TABLE parent (id integer PRIMARY KEY)",
    """CREATE TABLE child (id integer PRIMARY KEY,
  up integer REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE,
  nulled integer REFERENCES parent ON DELETE SET NULL,
  defaulted integer DEFAULT 0 REFERENCES parent ON DELETE SET DEFAULT)""",
    "CREATE TABLE whole (id integer PRIMARY KEY, v integer) PARTITION BY RANGE (id)",
    "CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (40)",
    "CREATE TABLE rest PARTITION OF whole DEFAULT",
    *(f"CREATE TABLE {name} (id integer PRIMARY KEY, v integer)" for name in LONG),
)
_BODY = "BEGIN EXECUTE NEW.what; RETURN NEW; END"
_LAIR = (
    "CREATE SCHEMA {lair}",
    "GRANT USAGE ON SCHEMA {lair} TO PUBLIC",
    """CREATE FUNCTION {lair}.run(what text) RETURNS boolean LANGUAGE plpgsql AS
  $$ BEGIN EXECUTE what; RETURN true; END $$""",
    """CREATE FUNCTION {lair}.run_new() RETURNS trigger LANGUAGE plpgsql AS $$ """ + _BODY + " $$",
    """CREATE FUNCTION {lair}.pass_on() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO {lair}.free VALUES (NEW.what); RETURN NULL; END $$""",
    """CREATE PROCEDURE {lair}.call(what text) LANGUAGE plpgsql AS
  $$ BEGIN EXECUTE what; COMMIT; EXECUTE what; COMMIT; END $$""",
    *(
        f"CREATE TABLE {{lair}}.{name} (what text)"
        for name in ("free", "before", "twice", "late", "later", "ruled")
    ),
    "CREATE TABLE {lair}.checked (what text CHECK ({lair}.run(what)))",
    "CREATE TRIGGER t AFTER INSERT ON {lair}.free FOR EACH ROW EXECUTE FUNCTION {lair}.run_new()",
    """CREATE TRIGGER t BEFORE INSERT ON {lair}.before FOR EACH ROW
  EXECUTE FUNCTION {lair}.run_new()""",
    "CREATE TRIGGER t AFTER INSERT ON {lair}.twice FOR EACH ROW EXECUTE FUNCTION {lair}.pass_on()",
    """CREATE CONSTRAINT TRIGGER t AFTER INSERT ON {lair}.late DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION {lair}.run_new()""",
    """CREATE FUNCTION {lair}.put_off() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO {lair}.late VALUES (NEW.what); RETURN NULL; END $$""",
    """CREATE CONSTRAINT TRIGGER t AFTER INSERT ON {lair}.later DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION {lair}.put_off()""",
    "CREATE VIEW {lair}.shown AS SELECT ''::text AS what",
    """CREATE TRIGGER t INSTEAD OF INSERT ON {lair}.shown FOR EACH ROW
  EXECUTE FUNCTION {lair}.run_new()""",
    "CREATE RULE r AS ON INSERT TO {lair}.ruled DO ALSO SELECT {lair}.run(NEW.what)",
    "CREATE VIEW {lair}.seen AS SELECT * FROM public.account",
    # What a careless or hostile path finds first.
    """CREATE FUNCTION {lair}.agree(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS
  'SELECT true'""",
    "CREATE OPERATOR {lair}.= (FUNCTION = {lair}.agree, LEFTARG = text, RIGHTARG = text)",
    """CREATE FUNCTION {lair}.current_setting(text, boolean) RETURNS text LANGUAGE sql AS
  $$ SELECT '0'::text $$""",
    "CREATE FUNCTION {lair}.pg_current_xact_id() RETURNS integer LANGUAGE sql AS 'SELECT 0'",
)
_LENT = (
    """CREATE FUNCTION {lair}.run_apart(what text) RETURNS boolean LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = public, pg_temp AS
  $$ BEGIN EXECUTE what; RETURN true; END $$""",
    "ALTER FUNCTION {lair}.run SECURITY DEFINER",
)


@dataclass(frozen=True)
class Session:
    """What one role sends, and in which way."""

    name: str
    role: str
    statements: tuple[str, ...]
    end: str = "COMMIT"

    def __str__(self) -> str:
        return "\n  ".join((self.name, *self.statements))


@dataclass
class Arena:
    """A server with guarded tables, and one connection for each role."""

    server: EmbeddedServer
    judge: Connection[Any]
    names: dict[str, str]
    settings: dict[str, Around] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    """How often a session was refused with which SQLSTATE, passed and left a mark, or nothing."""
    _open: dict[str, Connection[Any]] = field(default_factory=dict)
    _before: str = ""

    @property
    def version(self) -> int:
        return self.judge.info.server_version // 10000

    def connect(self, role: str) -> Connection[Any]:
        """A login of the role's own."""
        found = self._open.get(role)
        if found is None or found.closed:
            found = self._open[role] = psycopg.connect(
                f"host={self.server.directory} dbname=postgres user={role}",
                autocommit=True,
                # Sessions discard what the driver would have prepared.
                prepare_threshold=None,
            )
        return found

    def send(self, session: Session) -> str:
        """The refusal that the session met; nothing if it met none."""
        connection = self.connect(session.role)
        texts = [self.fill(s, session.role) for s in session.statements]
        refused = ""
        try:
            ENDS[session.end](connection, texts)
        except Error as error:
            refused = error.sqlstate or type(error).__name__
        self.clean(session.role)
        return refused

    def judge_session(self, session: Session) -> str | None:
        """What breaks the law, or nothing; the tables are as they were when this returns."""
        last = self._ask("SELECT coalesce(max(position), 0) FROM oplog.oplog_record")
        refused = self.send(session)
        after = self.read()
        if after == self._before:
            self.ends[refused or "nothing"] += 1
            return None
        told = self._read_marks(last)
        self.ends["mark" if told else "unlogged"] += 1
        before = dict(line.split(": ", 1) for line in self._before.splitlines())
        now = dict(line.split(": ", 1) for line in after.splitlines())
        hidden = [name for name in GUARDED if before[name] != now[name] and name not in told]
        self.seed()
        if not hidden:
            return None
        return f"{hidden} changed, {sorted(told)} are told, {refused or 'passed'}: {session}"

    def read(self) -> str:
        """All rows of the guarded tables, as one text."""
        return str(
            self._ask(
                "SELECT concat_ws(E'\\n', "
                + ", ".join(
                    f"'{name}: ' || coalesce((SELECT string_agg(t::text, ' ' ORDER BY id) "
                    f"FROM {name} t), '')"
                    for name in GUARDED
                )
                + ")"
            )
        )

    def empty(self) -> None:
        """Take all rows away."""
        with self.judge.transaction():
            self.judge.execute("SET LOCAL oplog.bypass = 'emptied'")
            for statement in EMPTY:
                self.judge.execute(statement.encode())

    def seed(self) -> None:
        """Bring back the first rows."""
        with self.judge.transaction():
            self.judge.execute("SET LOCAL oplog.bypass = 'seed'")
            for statement in SEED:
                self.judge.execute(statement)
        self._before = self.read()

    def close(self) -> None:
        for connection in (*self._open.values(), self.judge):
            connection.close()

    def _read_marks(self, after: int) -> set[str]:
        """Names of the tables that marks tell."""
        rows = self.judge.execute(
            "SELECT metadata FROM oplog.oplog_record WHERE position > %s", (after,)
        ).fetchall()
        texts = [
            value.replace('"', "")
            for (flat,) in rows
            for key, value in zip(flat[::2], flat[1::2], strict=True)
            if key == "oplog.changes"
        ]
        told = {name for name in GUARDED for text in texts if f"public.{name} (" in f" {text}"}
        if any("public.part (" in text or "public.rest (" in text for text in texts):
            told.add("whole")
        return told

    def fill(self, statement: str, role: str) -> str:
        """The statement with what only this server and this role have."""
        for name, value in (
            ("lair", f"lair_{role}"),
            ("other", f"lair_{OTHER}"),
            *self.names.items(),
        ):
            statement = statement.replace(f"{{{name}}}", value)
        return statement

    def _ask(self, statement: str) -> Any:
        row = self.judge.execute(statement.encode()).fetchone()
        return row and row[0]

    def clean(self, role: str) -> None:
        """End what a session left open; a connection that is gone is made anew."""
        connection = self.connect(role)
        with suppress(Error):
            connection.rollback()
        for (name,) in self.judge.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
            self.judge.execute(f"ROLLBACK PREPARED '{name}'".encode())
        try:
            connection.execute("DISCARD ALL")
        except Error:
            connection.close()
        kept = "SELECT to_regclass(%s)"
        made = f"lair_{role}.made"
        if self.judge.execute(kept, (made,)).fetchone() != (None,):
            self.judge.execute(f"DROP MATERIALIZED VIEW {made}".encode())


# -- ways to send ---------------------------------------------------------------------------------


def execute(connection: Connection[Any], statement: str) -> None:
    head, _, rows = statement.partition("\n")
    if "FROM STDIN" in head and rows:
        with connection.cursor() as cursor, cursor.copy(head.encode()) as copy:
            copy.write(rows)
    elif "TO STDOUT" in head:
        with connection.cursor() as cursor, cursor.copy(head.encode()) as copy:
            for _ in copy:
                pass
    else:
        connection.execute(statement.encode())


def _in_transaction(*ends: str) -> Any:
    def send(connection: Connection[Any], statements: Sequence[str]) -> None:
        for statement in ("BEGIN", *statements, *ends):
            execute(connection, statement)

    return send


def _one_by_one(connection: Connection[Any], statements: Sequence[str]) -> None:
    """Each is a transaction; what it sets goes on for the session."""
    for statement in statements:
        execute(connection, statement.replace("SET LOCAL", "SET").replace(", true)", ", false)"))


def _at_once(connection: Connection[Any], statements: Sequence[str]) -> None:
    """One message with several statements, which are one transaction."""
    connection.execute("; ".join(statements).encode())


def _at_once_between(connection: Connection[Any], statements: Sequence[str]) -> None:
    connection.execute("; ".join(("BEGIN", *statements, "COMMIT")).encode())


def _in_pipeline(connection: Connection[Any], statements: Sequence[str]) -> None:
    """All are sent before the first answer is read; without BEGIN they are one transaction."""
    sent = connection.pgconn
    sent.enter_pipeline_mode()
    for statement in statements:
        sent.send_query_params(statement.encode(), None)
    sent.pipeline_sync()
    refused = None
    while (found := sent.get_result()) is None or found.status != ExecStatus.PIPELINE_SYNC:
        if found is not None and found.status == ExecStatus.FATAL_ERROR:
            refused = refused or found
    sent.exit_pipeline_mode()
    if refused is not None:
        raise error_from_result(refused)


def _in_pipeline_between(connection: Connection[Any], statements: Sequence[str]) -> None:
    _in_pipeline(connection, ("BEGIN", *statements, "COMMIT"))


ENDS = {
    "COMMIT": _in_transaction("COMMIT"),
    "COMMIT AND CHAIN": _in_transaction("COMMIT AND CHAIN", "COMMIT"),
    "PREPARE TRANSACTION": _in_transaction("PREPARE TRANSACTION 'x'", "COMMIT PREPARED 'x'"),
    "one by one": _one_by_one,
    "at once": _at_once,
    "at once, between": _at_once_between,
    "in a pipeline": _in_pipeline,
    "in a pipeline, between": _in_pipeline_between,
}


BY_STATEMENT = ("COMMIT", "COMMIT AND CHAIN", "PREPARE TRANSACTION", "one by one")
"""What sends one statement after the other, as COPY needs it."""


# -- setting up -----------------------------------------------------------------------------------


@contextmanager
def open_arena(bin_dir: Path | None, *, definition: Sequence[str] = ()) -> Iterator[Arena]:
    """Start a server; `definition` is the log's, the present one by default."""
    with EmbeddedServer(bin_dir=bin_dir) as server:
        judge = psycopg.connect(
            f"host={server.directory} dbname=postgres user=postgres", autocommit=True
        )
        _set_up(judge, definition or create_statements())
        names = {"another": OTHER} | {
            name: str(oid)
            for name, oid in judge.execute(
                "SELECT relname, oid FROM pg_class WHERE relname IN ('account', 'child', 'whole')"
            )
        }
        arena = Arena(server, judge, names)
        with psycopg.connect(f"host={server.directory} dbname=postgres user=stranger") as plain:
            arena.settings = list_settings(plain)
        arena.seed()
        yield arena
        arena.close()


def _set_up(judge: Connection[Any], definition: Sequence[str]) -> None:
    for statement in ("CREATE ROLE dba", "GRANT CREATE ON DATABASE postgres TO dba"):
        judge.execute(statement.encode())
    judge.execute("GRANT ALL ON SCHEMA public TO dba")
    judge.execute("CREATE ROLE keepers")
    judge.execute("SET SESSION AUTHORIZATION dba")
    for statement in (*_OBJECTS, *definition, *track_statements(GUARDED, bypass_role="keepers")):
        judge.execute(statement.encode())
    judge.execute("RESET SESSION AUTHORIZATION")
    for role in (*ROLES, OTHER):
        judge.execute(f"CREATE ROLE {role} LOGIN".encode())
        for grant in (
            "SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public",
            "CREATE, TEMPORARY ON DATABASE postgres",
        ):
            judge.execute(f"GRANT {grant} TO {role}".encode())
        judge.execute(f"SET SESSION AUTHORIZATION {role}".encode())
        for statement in (*_LAIR, *(_LENT if role == OTHER else ())):
            judge.execute(statement.replace("{lair}", f"lair_{role}").encode())
        judge.execute("RESET SESSION AUTHORIZATION")
    for role, kind in (
        (AUDITOR, RoleKind.AUDITOR),
        (APPLICATION, RoleKind.APPLICATION),
        (CHIEF, RoleKind.APPLICATION),
    ):
        for grant in list_grants(role, kind, schema="oplog"):
            judge.execute(grant.encode())
    if judge.info.server_version >= 150000:
        judge.execute(
            f"GRANT SET ON PARAMETER session_replication_role TO {KEEPER}, {AUDITOR}".encode()
        )
    judge.execute(f"GRANT keepers TO {', '.join(BYPASSING)}".encode())
    judge.execute(f"GRANT {OTHER} TO {APPLICATION}, {STRANGER}".encode())
