"""Judges rights, triggers and subscriptions that write a log past its own functions. Pure.

Each finding names the statement that ends it and leaves the application working.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from oplog.doctor.access_facts import (
    SCHEMA_CREATE,
    Access,
    Excess,
    ForeignTable,
    Subscribed,
    WideRole,
)
from oplog.finding import Finding, make_notice, make_problem
from oplog.postgres.quoting import (
    quote,
)
from oplog.schema.locks import CLAIM_INDEX, WAITED_FOR
from oplog.schema.rights import GRANTED
from oplog.schema.tables import (
    ENTRY_INDEX,
    IDEMPOTENCY_INDEX,
    RECORD_ID_INDEX,
    VERSION,
)

_REACHES = {
    SCHEMA_CREATE: "what it creates in the schema of the log could be called by functions of the "
    "log, with the rights of its owner",
    "pg_write_all_data": "it may write every table, those of the log too, past its functions",
    "pg_maintain": "it may lock every table, those of the log too, and stop all appends",
}


def spell_upgrade(schema: str) -> str:
    """The line of a migration that upgrades a log to the current definition."""
    where = "" if schema == "oplog" else f", schema={schema!r}"
    return f"op.upgrade_oplog(version={VERSION}{where})"


def judge_access(access: Access, schema: str, *, tracked: Collection[str]) -> Iterator[Finding]:
    """A finding for each deviation from the definition of the log in `schema`.

    `tracked` are the names of the catalog's tables, with their schemas.
    """
    upgrade = spell_upgrade(schema)
    for excess in access.excess:
        yield _judge_excess(excess, schema)
    yield from (_judge_wide(wide) for wide in access.wide)
    yield from (_judge_foreign(table) for table in access.foreign)
    for name in access.closed:
        yield make_problem(
            "function-closed",
            f"function {schema}.{name}",
            message="not every role may execute it, and a role that writes a guarded table has to: "
            "such writes fail without a reason",
            hint=f"GRANT EXECUTE ON FUNCTION {quote(schema)}.{name} TO PUBLIC",
        )
    for stray in access.strays:
        where = "a temporary table" if stray.temporary else f"{stray.table}"
        yield make_problem(
            "trigger-stray",
            f"{stray.table} trigger {stray.name}",
            message=f"a trigger on {where} calls {schema}.{stray.function}, which runs with the "
            "rights of the log's owner, and is not part of a guard",
            hint=f"find out who made it, then DROP TRIGGER {stray.name} ON {stray.table}",
        )
    for one in access.subscribed:
        if one.guarded or one.of_log or one.table in tracked:
            yield _judge_subscribed(one)
    kept = {
        RECORD_ID_INDEX: "an old record from being appended once more",
        IDEMPOTENCY_INDEX: "an idempotency key from being used once more",
        ENTRY_INDEX: "an aggregate from being created once more",
        CLAIM_INDEX: "two transactions from holding an idempotency key at once",
    }
    for name in access.missing_indexes:
        yield make_problem(
            "log-index-missing",
            f"{schema}.{name}",
            message=f"nothing keeps {kept[name]}: the unique index is not here",
            hint=f"{upgrade} in a migration makes it again; run `oplog verify` before",
        )


def _judge_wide(wide: WideRole) -> Finding:
    return make_problem(
        "role-open",
        f"role {wide.role}",
        message=f"it has {wide.right}: {_REACHES[wide.right]}",
        hint=f"grant it what it needs on other objects by name, then {wide.statement}",
    )


def _judge_foreign(foreign: ForeignTable) -> Finding:
    return make_notice(
        "table-foreign",
        foreign.table,
        message=f"this logged table belongs to {foreign.role}, which does not have the rights of "
        "the log's owner: who reads it, for `oplog verify` or a snapshot, runs functions that its "
        "owner chose for policies and indexes, with the reader's rights",
        hint=f"{foreign.statement}; or read it with roles that may do no more than its owner",
    )


def _judge_subscribed(one: Subscribed) -> Finding:
    state = "writes" if one.enabled else "will write, once it is enabled,"
    out = (
        "take the table out of the publication, then ALTER SUBSCRIPTION "
        f"{one.subscription} REFRESH PUBLICATION; "
    )
    if one.of_log:
        return make_problem(
            "log-subscribed",
            one.table,
            message=f"the subscription {one.subscription} {state} this table of the log: records "
            "come without the order, the snapshots and the counters that appending keeps",
            hint=out + "a log moves by `oplog restore`, `oplog follow`, a dump with `oplog "
            "incarnate`, or with the whole server",
        )
    if not one.guarded:
        return make_problem(
            "table-subscribed",
            one.table,
            message=f"the subscription {one.subscription} {state} this table of the catalog, and "
            "nobody logs that: rows pass unseen, because the table has no guard",
            hint=out + "then adopt its rows (`oplog adopt`); or leave it out of the catalog: "
            'untracked={"table": "reason"}',
        )
    return make_problem(
        "guard-subscribed",
        one.table,
        message=f"the subscription {one.subscription} {state} this guarded table, and nobody "
        "logs that: its worker is refused at COMMIT, again and again",
        hint=out + "or write the changes through an attached session",
    )


def _judge_excess(excess: Excess, schema: str) -> Finding:
    upgrade = spell_upgrade(schema)
    allowed = {f"oplog_{name}" for name in GRANTED}
    if excess.privileges == "EXECUTE":
        reason = "a function of the log that only its owner needs"
        if excess.name in {f"oplog_{name}" for name in WAITED_FOR}:
            reason = "any role can hold what transactions of the log wait for"
        elif excess.name in allowed:
            reason = "any role can write into the log"
        return make_problem(
            "function-open",
            f"function {schema}.{excess.name}",
            message=f"{excess.role} may execute it: {reason}",
            hint=f"{upgrade} in a migration takes all such rights back; or {excess.statement}",
        )
    return make_problem(
        "table-open",
        f"{schema}.{excess.name}",
        message=f"{excess.role} may {excess.privileges} past the log's own functions",
        hint=f"{upgrade} in a migration takes all such rights back; or {excess.statement}",
    )
