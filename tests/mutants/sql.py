"""Changes of what the log's SQL functions mean, by hand: to Python they are only text.

Each has a name, the text it changes and what it becomes. The text must stand in the source, and
at the place of its number where it stands there more than once: otherwise the functions were
rewritten, and this list has to follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.mutation import Mutant


@dataclass(frozen=True, slots=True)
class Change:
    """`old` becomes `new`, at its `place`-th occurrence (from 0)."""

    name: str
    old: str
    new: str
    place: int = 0
    also: tuple[str, str] | None = None
    """A second text, and what it becomes, where one alone changes nothing."""


_TICKET = "p_expected <> o_version - 1"
_TICKETS = "p_expected[n] <> versions[n] - 1"

CHANGES = (
    # Tickets.
    Change("one: a stale ticket is not noticed", _TICKET, "false"),
    Change("one: every ticket is stale", _TICKET, "p_expected = o_version - 1"),
    Change("one: a ticket ahead of its aggregate passes", _TICKET, "p_expected < o_version - 1"),
    Change("one: a ticket is compared with the new version", _TICKET, "p_expected <> o_version"),
    Change("many: a stale ticket is not noticed", _TICKETS, "false"),
    Change("many: every ticket is stale", _TICKETS, "p_expected[n] = versions[n] - 1"),
    Change("many: a ticket ahead passes", _TICKETS, "p_expected[n] < versions[n] - 1"),
    Change("many: only the first ticket is compared", _TICKETS, "p_expected[1] <> versions[1] - 1"),
    Change("versions skip one", "version = t.version + 1,", "version = t.version + 2,"),
    Change("versions stand still", "version = t.version + 1,", "version = t.version,"),
    Change("a first version is two", "VALUES (p_aggregate, 1,", "VALUES (p_aggregate, 2,"),
    Change("many: a first version is two", "SELECT i.aggregate, 1,", "SELECT i.aggregate, 2,"),
    Change(
        "a ticket that is there is left as it is",
        "DO UPDATE SET\n    version",
        "DO UPDATE SET\n    body_hash = t.body_hash WHERE false; --",
    ),
    # The chain.
    Change("prev_hash stays", "prev_hash = t.head_hash,", "prev_hash = t.prev_hash,"),
    Change("a chain does not bind the hash before", "|| t.head_hash ||", "|| t.prev_hash ||"),
    Change("a chain binds the old version", "int8send(t.version + 1)", "int8send(t.version)"),
    Change("a first hash binds no version", "int8send(1)", "int8send(0)"),
    Change("another label", "oplog/v1/entry", "oplog/v1/body"),
    Change("no end of the label", " || '\\\\x00'::bytea", ""),
    Change("a chain begins with one", '"00" * 32', '"01" * 32'),
    Change(
        "the hash binds time before version",
        "pg_catalog.int8send(t.version + 1)\n"
        "                        || pg_catalog.timestamptz_send(v_now)",
        "pg_catalog.timestamptz_send(v_now)\n"
        "                        || pg_catalog.int8send(t.version + 1)",
    ),
    Change(
        "a first hash binds time before version",
        'pg_catalog.int8send(1) "\n        f"|| pg_catalog.timestamptz_send(v_now)',
        'pg_catalog.timestamptz_send(v_now) "\n        f"|| pg_catalog.int8send(1)',
    ),
    Change(
        "the hash binds another time than is stored",
        '|| pg_catalog.timestamptz_send(v_now) || {body})"""',
        '|| pg_catalog.timestamptz_send(pg_catalog.now()) || {body})"""',
    ),
    Change(
        "a ticket keeps the old body hash",
        "body_hash = excluded.body_hash,",
        "body_hash = t.body_hash,",
    ),
    Change("the entry keeps the wrong prev_hash", "v_prev, o_hash, v_now", "o_hash, o_hash, v_now"),
    Change("the entry keeps the wrong hash", "v_prev, o_hash, v_now", "v_prev, v_prev, v_now"),
    Change(
        "many: the entries keep the wrong prev_hash",
        "p_metadata_hash, i.prev_hash, i.entry_hash",
        "p_metadata_hash, i.entry_hash, i.entry_hash",
    ),
    # Fences and durability.
    Change("one: a fence is not looked for", '{_refuse_fenced(s, "= p_entry_id")}', ""),
    Change("many: a fence is not looked for", '{_refuse_fenced(s, "= ANY (p_entry_ids)")}', ""),
    Change("many: only the first entry's fence counts", "= ANY (p_entry_ids)", "= p_entry_ids[1]"),
    Change("everything is fenced", "WHERE f.entry_id {among}", "WHERE true"),
    Change("one: durability is not asked for", "{_refuse_asynchronous()}", ""),
    Change("many: durability is not asked for", "{_refuse_asynchronous()}", "", 1),
    Change("one: any format is appended", "{_refuse_format()}", ""),
    Change("many: any format is appended", "{_refuse_format()}", "", 1),
    Change("asynchronous commit is always refused", "NOT p_asynchronous", "true"),
    Change("only the opposite is refused", "= 'off' THEN", "<> 'off' THEN"),
    # Order.
    Change(
        "one: the id is drawn before the ticket is redeemed",
        "v_position bigint;",
        "v_position bigint := pg_catalog.nextval({sequence});",
        also=("  v_position := pg_catalog.nextval({sequence});\n", ""),
    ),
    Change(
        "many: the id is drawn before the tickets are redeemed",
        "v_first bigint;",
        "v_first bigint := pg_catalog.nextval({sequence});",
        also=("  v_first := pg_catalog.nextval({sequence});\n", ""),
    ),
    Change(
        "many: tickets are redeemed in no order",
        'ORDER BY i.aggregate COLLATE \\"C\\"',
        'ORDER BY i.aggregate COLLATE \\"C\\" DESC',
    ),
    Change(
        "many: versions are in another order",
        "array_agg(r.version ORDER BY r.aggregate_name)",
        "array_agg(r.version ORDER BY r.aggregate_name DESC)",
    ),
    Change(
        "many: previous hashes are in another order",
        "array_agg(r.prev_hash ORDER BY r.aggregate_name)",
        "array_agg(r.prev_hash ORDER BY r.aggregate_name DESC)",
    ),
    Change(
        "many: hashes are in another order",
        "array_agg(r.head_hash ORDER BY r.aggregate_name)",
        "array_agg(r.head_hash ORDER BY r.aggregate_name DESC)",
    ),
    Change("many: unsorted aggregates pass", "IF n > 1 AND", "IF false AND"),
    Change("many: an aggregate may be there twice", "p_aggregates[n] <= p", "p_aggregates[n] < p"),
    Change(
        "many: sorted by the database's own rules",
        'p_aggregates[n - 1] COLLATE "C"',
        'p_aggregates[n - 1] COLLATE "und-x-icu"',
    ),
    Change("many: the last aggregate is not checked", "1 .. v_count LOOP", "1 .. v_count - 1 LOOP"),
    # What is written.
    Change("one: a transaction of two", "v_position, 1, p_aggregate", "v_position, 2, p_aggregate"),
    Change("many: a transaction of one", "v_first, v_count,", "v_first, 1,"),
    Change("many: each entry is its own transaction", "i.entry_id, v_first,", "i.entry_id, i.n,"),
    Change(
        "many: the last entry has the transaction's id",
        "CASE i.n WHEN 1 THEN v_first",
        "CASE i.n WHEN v_count THEN v_first",
    ),
    Change(
        "many: every entry has the key",
        "CASE i.n WHEN 1 THEN p_idempotency_key END",
        "p_idempotency_key",
    ),
    Change("many: no entry has the key", "THEN p_idempotency_key END", "THEN NULL END"),
    Change("one: the key is not kept", "v_now, p_idempotency_key);", "v_now, NULL);"),
    Change("one: no metadata", "IF p_metadata_keys IS NOT NULL THEN", "IF false THEN"),
    Change("many: no metadata", "IF p_metadata_keys IS NOT NULL THEN", "IF false THEN", 1),
    Change("metadata in another order", "SELECT {position}, m.n,", "SELECT {position}, 9 - m.n,"),
    Change(
        "metadata of another transaction", "SELECT {position}, m.n", "SELECT {position} + 1, m.n"
    ),
    Change("metadata with keys and values swapped", "m.n, m.key, m.value", "m.n, m.value, m.key"),
    # Guards.
    Change("one: the guards' tally is not settled", "IF p_tally IS NOT NULL THEN", "IF false THEN"),
    Change(
        "many: the guards' tally is not settled", "IF p_tally IS NOT NULL THEN", "IF false THEN", 1
    ),
)


def list_sql_mutants(source: str) -> list[Mutant]:
    """A mutant for each change."""
    mutants = []
    for change in CHANGES:
        parts = source.split(change.old)
        if len(parts) <= change.place + 1:
            raise SystemExit(f"sql: {change.name}: {change.old!r} is not in the source any more")
        before = change.old.join(parts[: change.place + 1])
        after = change.old.join(parts[change.place + 1 :])
        line = before.count("\n") + 1
        text = before + change.new + after
        if change.also is not None:
            if text.count(change.also[0]) != 1:
                raise SystemExit(f"sql: {change.name}: {change.also[0]!r} is not there once")
            text = text.replace(*change.also)
        mutants.append(Mutant(change.name, line, change.old, change.new, text))
    return mutants
