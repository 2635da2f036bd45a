"""Judges settings, owners and open transactions that the log relies on. Pure.

Most servers have some of these settings, so only what breaks a promise of the log is a problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from oplog.doctor.activity import Activity, OpenTransaction
from oplog.doctor.facts import Facts, OwnedObject
from oplog.finding import Finding, Severity, make_notice, make_problem
from oplog.postgres.live_table import REFUSED_SETTINGS

LONG_KEEPALIVE_SECONDS = 600
"""A longer `tcp_keepalives_idle` is reported: a lost client holds its locks that long."""
LONG_TRANSACTION_SECONDS = 300
"""Age from which an open transaction is reported: it holds locks and dead row versions."""
OLD_DATABASE_AGE = 1_000_000_000
"""Age in transaction ids that is reported; after about 2,000,000,000 writes are refused."""
_KINDS = ("schema", "table", "function")
_OFF = frozenset({"off", "false", "no", "0"})


def judge_owners(facts: Facts, schema: str) -> Iterator[Finding]:
    """Findings on owners, who can disable the log's triggers, and on what guards may access."""
    by_owner: dict[str, list[OwnedObject]] = {}
    for owned in facts.log.owned:
        by_owner.setdefault(owned.owner, []).append(owned)
    for owner, objects in by_owner.items():
        what = _count_objects(objects)
        if owner == facts.role:
            yield make_notice(
                "owner-connected",
                f"role {owner}",
                message=f"the role of this connection owns {what} of the log: if the application "
                "connects as this role, it can switch triggers off",
                hint="let the application use a role that does not own the log",
            )
        if objects[0].superuser:
            yield make_notice(
                "owner-superuser",
                f"role {owner}",
                message=f"a superuser owns {what} of the log; guard functions run with its rights",
                hint="create the log as a role that owns your tables and is no superuser",
            )
    owners = {kind: {o.owner for o in facts.log.owned if o.kind == kind} for kind in _KINDS}
    if owners["function"] - owners["table"]:
        others = ", ".join(sorted(owners["function"] - owners["table"]))
        yield make_problem(
            "owner-differs",
            f"schema {schema}",
            message=f"functions of the log are owned by {others}, its tables by "
            f"{', '.join(sorted(owners['table']))}: guards run with their owner's rights and may "
            "not reach the tables",
            hint=f"ALTER FUNCTION ... OWNER TO {min(owners['table'], default='...')}",
        )
    elif owners["function"] != owners["schema"]:
        yield make_notice(
            "owner-differs",
            f"schema {schema}",
            message=f"the schema is owned by {', '.join(sorted(owners['schema']))}, the log in it "
            f"by {', '.join(sorted(owners['function']))}: both can drop what is in it",
            hint="let one role own both",
        )


def _count_objects(objects: list[OwnedObject]) -> str:
    counted = []
    for kind in _KINDS:
        number = sum(owned.kind == kind for owned in objects)
        if number:
            counted.append("the schema" if kind == "schema" else f"{number} {kind}s")
    return ", ".join(counted)


def judge_settings(facts: Facts) -> Iterator[Finding]:
    """Findings on settings that weaken what the log guarantees, and on a standby."""
    if facts.standby:
        yield make_notice(
            "standby",
            f"database {facts.database}",
            message="this server is a standby: what guards keep of transactions cannot be "
            "read on it",
            hint="run this on the primary as well",
        )
    settings = {**facts.settings}
    if not facts.over_tcp:
        settings.pop("tcp_keepalives_idle", None)
    for name, value in settings.items():
        yield from _judge_setting(name, value, where=name)
    for role, name, value in facts.role_settings:
        yield from _judge_setting(name, value, where=f"{name} of role {role}")


_WEAK: Mapping[str, tuple[Severity, frozenset[str], str, str]] = {
    "fsync": (
        "problem",
        _OFF,
        "a crash of the machine may corrupt or lose what was committed, log and tables alike",
        "set fsync = on",
    ),
    "full_page_writes": (
        "problem",
        _OFF,
        "a crash of the machine may tear pages, log and tables alike",
        "set full_page_writes = on",
    ),
    "synchronous_commit": (
        "problem",
        _OFF,
        "a crash loses the last commits after they were reported as done",
        "set synchronous_commit = on",
    ),
    "session_replication_role": (
        "problem",
        frozenset({"replica"}),
        "foreign keys and ordinary triggers do not fire, and replay checks foreign keys",
        "set session_replication_role = origin",
    ),
    "idle_in_transaction_session_timeout": (
        "notice",
        frozenset({"0"}),
        "a client that hangs in a transaction holds its locks for ever",
        "set idle_in_transaction_session_timeout, to a minute for example",
    ),
    **{
        name: (
            "problem",
            frozenset({refused}),
            f"{why}; what needs it is refused",
            f"set {name} = {wanted}",
        )
        for name, (refused, wanted, why) in REFUSED_SETTINGS.items()
    },
}


def _judge_setting(name: str, value: str, *, where: str) -> Iterator[Finding]:
    if name in _WEAK:
        severity, weak, message, hint = _WEAK[name]
        if value.lower() in weak:
            text = f"{name} is {value}: {message}"
            yield Finding(severity=severity, what="setting", where=where, message=text, hint=hint)
    elif name == "server_encoding" and value.upper() != "UTF8":
        yield make_problem(
            "setting",
            where,
            message=f"the database is encoded in {value}: text that it cannot hold is refused, and "
            "what the log hashes is UTF-8",
            hint="create the database anew with ENCODING 'UTF8' and load it",
        )
    elif (
        name == "tcp_keepalives_idle"
        and value.isdecimal()
        and not 0 < int(value) <= LONG_KEEPALIVE_SECONDS
    ):
        yield make_notice(
            "setting",
            where,
            message=f"{name} is {value} s: a client that vanished holds its locks for as long",
            hint=f"set {name} to {LONG_KEEPALIVE_SECONDS} s or less",
        )


def judge_activity(activity: Activity) -> Iterator[Finding]:
    """Findings on old open transactions, and on a database near transaction id wraparound."""
    for one in activity.transactions:
        if one.seconds >= LONG_TRANSACTION_SECONDS:
            yield _judge_transaction(one)
    if activity.frozen_age >= OLD_DATABASE_AGE:
        yield make_notice(
            "wraparound",
            "transaction ids",
            message=f"{activity.frozen_age:,} transactions have passed since the oldest that this "
            "database has to know; after about two thousand million the server refuses writes",
            hint="end old transactions, drop unused replication slots, then VACUUM FREEZE",
        )


def _judge_transaction(one: OpenTransaction) -> Finding:
    minutes = f"{one.seconds // 60} minutes"
    if one.prepared is not None:
        name = one.prepared.replace("'", "''")
        return make_notice(
            "transaction-prepared",
            f"prepared transaction {one.prepared}",
            message=f"{one.role} prepared it {minutes} ago and it is still there: it holds its "
            "locks, through restarts too, and writers of the same aggregates wait",
            hint=f"COMMIT PREPARED '{name}' or ROLLBACK PREPARED '{name}'",
        )
    program = f" ({one.application_name})" if one.application_name else ""
    return make_notice(
        "transaction-old",
        f"process {one.process_id}",
        message=f"{one.role}{program} has had a transaction open for {minutes}, {one.state}: "
        "nothing is missed by readers, but what it wrote comes late, its locks are held, and no "
        "dead version of a ticket can be cleaned away",
        hint=f"end it there, or SELECT pg_terminate_backend({one.process_id})",
    )
