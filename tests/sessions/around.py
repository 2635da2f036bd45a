"""What a session may do before and after a write, to have it pass unseen.

Settings are read from the server itself: each that an ordinary role may set, to each other value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from psycopg import Connection

UNDONE = "UPDATE account SET note = 'undone'"
NOW, LATER = "IMMEDIATE", "DEFERRED"
CHECK = "oplog_guard_armed"
XID = "pg_current_xact_id()::text"

COLLECT = "SELECT count(*) FROM oplog.oplog_collect_images()"


@dataclass(frozen=True)
class Around:
    """Statements before and after a write. `forged` sets what the guards keep for themselves."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    forged: bool = False


def _savepoints() -> dict[str, Around]:
    return {
        "released before": Around(("SAVEPOINT a", "RELEASE a")),
        "undone before": Around(("SAVEPOINT a", UNDONE, "ROLLBACK TO a")),
        "undone before, released": Around(("SAVEPOINT a", UNDONE, "ROLLBACK TO a", "RELEASE a")),
        "inside": Around(("SAVEPOINT a",), ("RELEASE a",)),
        "inside two": Around(("SAVEPOINT a", "SAVEPOINT b"), ("RELEASE b", "RELEASE a")),
        "undone after": Around((), ("SAVEPOINT a", UNDONE, "ROLLBACK TO a")),
        "undone around": Around(
            ("SAVEPOINT a", UNDONE, "ROLLBACK TO a"), ("SAVEPOINT b", UNDONE, "ROLLBACK TO b")
        ),
        "inside, undone inside": Around(
            ("SAVEPOINT a",), ("SAVEPOINT b", UNDONE, "ROLLBACK TO b", "RELEASE a")
        ),
        "one more before": Around((UNDONE, "SAVEPOINT a"), ("RELEASE a",)),
        "undone with what follows": Around((UNDONE, "SAVEPOINT a"), ("ROLLBACK TO a",)),
    }


def _resets() -> dict[str, Around]:
    found: dict[str, Around] = {}
    for reset in (
        "RESET ALL",
        "RESET oplog.armed",
        "RESET oplog.tally",
        "RESET oplog.told",
        "RESET oplog.bypass",
        "DISCARD PLANS",
        "DISCARD TEMP",
        "DISCARD ALL",
        "RESET ROLE",
        "RESET SESSION AUTHORIZATION",
    ):
        found[f"{reset} before"] = Around((reset,))
        found[f"{reset} after"] = Around((), (reset,))
        found[f"{reset} in a savepoint"] = Around((), ("SAVEPOINT a", reset, "RELEASE a"))
        found[f"{reset} undone"] = Around((), ("SAVEPOINT a", reset, "ROLLBACK TO a"))
        found[f"{reset} over a savepoint"] = Around(("SAVEPOINT a",), ("RELEASE a", reset))
        found[f"{reset} between"] = Around((UNDONE, reset))
    return found


def _constraints() -> dict[str, Around]:
    found: dict[str, Around] = {}
    for name in ("ALL", CHECK, f"public.{CHECK}", "oplog.oplog_image_collected"):
        now, later = (f"SET CONSTRAINTS {name} {mode}" for mode in (NOW, LATER))
        found |= {
            f"{name} now": Around((now,)),
            f"{name} now, after": Around((), (now,)),
            f"{name} now and later": Around((now, later)),
            f"{name} now, later after": Around((now,), (later,)),
            f"{name} later": Around((later,)),
            f"{name} later, now after": Around((later,), (now,)),
            f"{name} now, undone": Around(("SAVEPOINT a", now, "ROLLBACK TO a")),
            f"{name} now, released": Around(("SAVEPOINT a", now, "RELEASE a")),
            f"{name} between": Around((UNDONE, now)),
            f"{name} caught": Around(
                (), (f"DO $$ BEGIN {now}; EXCEPTION WHEN OTHERS THEN NULL; END $$",)
            ),
            f"{name} refused and undone": Around((), ("SAVEPOINT a", now, "ROLLBACK TO a")),
        }
    return found


def _names() -> dict[str, Around]:
    temporary = "SET LOCAL search_path = pg_temp, pg_catalog, public"
    own = "SET LOCAL search_path = {lair}, pg_catalog, public"
    relations = (
        "oplog_old",
        "oplog_new",
        "oplog_image",
        "pg_class",
        "pg_trigger",
        "account",
        "text",
    )
    return {
        **{
            f"{name} in pg_temp": Around((f"CREATE TEMP TABLE {name} (id integer)", temporary))
            for name in relations
        },
        "a domain in pg_temp": Around(("CREATE DOMAIN pg_temp.text AS pg_catalog.text", temporary)),
        "a view in pg_temp": Around(("CREATE TEMP VIEW oplog_new AS SELECT 1 AS id",)),
        "operators and functions": Around((own,)),
        "the log first": Around(("SET LOCAL search_path = oplog, public",)),
        "everything": Around(("CREATE TEMP TABLE oplog_image (id integer)", own)),
    }


def _transactions() -> dict[str, Around]:
    modes = ("ISOLATION LEVEL REPEATABLE READ", "ISOLATION LEVEL SERIALIZABLE", "READ ONLY")
    return {
        **{f"{mode}": Around((f"SET TRANSACTION {mode}",)) for mode in modes},
        "read only after": Around((), ("SET TRANSACTION READ ONLY",)),
        "locked": Around(("LOCK TABLE account IN ROW EXCLUSIVE MODE",)),
        "replica": Around(("SET LOCAL session_replication_role = replica",)),
        "as another": Around(("SET LOCAL ROLE {another}",)),
        "lies": Around(("SET oplog.tally = '0'", "SET oplog.armed = '1'", "SET oplog.told = '1'")),
        "images": Around((), (COLLECT,), forged=True),
    }


def _forged() -> dict[str, Around]:
    """What only a malicious role sends: a role without the right to append gains nothing by it."""

    def put(name: str, value: str) -> str:
        return f"SELECT set_config('oplog.{name}', {value}, true)"

    nothing, arm = put("tally", "'0'"), put("armed", XID)
    ways = {
        "armed": Around((arm,)),
        "armed by its function": Around(("SELECT oplog.oplog_arm()",)),
        "armed, nothing open": Around((arm, nothing)),
        "armed, settled": Around((arm,), (nothing,)),
        "nothing open": Around((), (nothing,)),
        "nothing open, now": Around((), (nothing, "SET CONSTRAINTS ALL IMMEDIATE")),
        "armed again": Around((), (put("armed", "''"), arm, nothing)),
        "armed after a savepoint": Around(("SAVEPOINT a", UNDONE, "ROLLBACK TO a", arm)),
        "told": Around((put("told", XID),), (nothing,)),
        "settled by its function": Around(
            (), ("SELECT oplog.oplog_settle(current_setting('oplog.tally')::bigint)",)
        ),
        "images and tally": Around(
            (), ("SELECT count(*) FROM oplog.oplog_collect_images()", nothing)
        ),
    }
    return {name: Around(a.before, a.after, forged=True) for name, a in ways.items()}


AROUND: Mapping[str, Around] = {
    "nothing": Around(),
    **_savepoints(),
    **_resets(),
    **_constraints(),
    **_names(),
    **_transactions(),
    **_forged(),
}

_LEFT_OUT = (
    "exit_on_error",
    "client_encoding",
    "role",
    "session_authorization",
    "search_path",
    "temp_buffers",
)
"""Settings that end the session, or that have ways of their own."""
_SETTABLE = """SELECT name, vartype, setting, min_val, max_val, enumvals FROM pg_settings
WHERE context = 'user' AND name <> ALL (%s) AND name NOT LIKE 'oplog.%%' ORDER BY name"""
_TEXTS: Mapping[str, Sequence[str]] = {
    "datestyle": ("SQL, DMY",),
    "timezone": ("Asia/Kathmandu",),
    "lc_monetary": ("C",),
    "lc_numeric": ("C",),
    "plpgsql.extra_errors": ("all",),
    "plpgsql.extra_warnings": ("all",),
    "restrict_nonsystem_relation_kind": ("view",),
}


def list_settings(connection: Connection) -> dict[str, Around]:
    """Each setting of the server before a write, and after it."""
    found: dict[str, Around] = {}
    for name, kind, now, least, most, named in connection.execute(_SETTABLE, (list(_LEFT_OUT),)):
        for value in _list_values(
            str(name).lower(), kind, now=now, bounds=(least, most), named=named or ()
        ):
            statement = f"SET LOCAL {name} = '{value}'"
            found[f"{name} = {value}"] = Around((statement,))
            found[f"{name} = {value}, after"] = Around((), (statement,))
    return found


def _list_values(
    name: str, kind: str, *, now: str, bounds: tuple[str, str], named: Sequence[str]
) -> Iterator[str]:
    if kind == "bool":
        yield "off" if now == "on" else "on"
    elif kind == "enum":
        yield from (value for value in named if value != now)
    elif kind in {"integer", "real"}:
        # A time limit of a millisecond ends any session, which proves nothing.
        yield from (value for value in bounds if value != now and "timeout" not in name)
    else:
        yield from _TEXTS.get(name, ())
