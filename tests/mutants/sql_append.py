"""Changes of how tickets are redeemed and a record is written, in `oplog.schema.append`."""

from __future__ import annotations

from tests.mutants.sql_change import Change

CHANGES = (
    # Tickets.
    Change(
        "few: a stale ticket is not noticed", "IF {expected} <> v_version - 1 THEN", "IF false THEN"
    ),
    Change(
        "few: a ticket ahead passes", "{expected} <> v_version - 1", "{expected} < v_version - 1"
    ),
    Change(
        "few: every ticket is stale", "{expected} <> v_version - 1", "{expected} = v_version - 1"
    ),
    Change(
        "few: a ticket is compared with the new version",
        "{expected} <> v_version - 1",
        "{expected} <> v_version",
    ),
    Change(
        "few: versions skip one",
        "UPDATE {s}.oplog_ticket SET version = version + 1",
        "UPDATE {s}.oplog_ticket SET version = version + 2",
    ),
    Change(
        "few: versions stand still",
        "UPDATE {s}.oplog_ticket SET version = version + 1",
        "UPDATE {s}.oplog_ticket SET version = version",
    ),
    Change(
        "few: a first ticket forgets the entries",
        "VALUES ({aggregate}, coalesce((SELECT e.version",
        "VALUES ({aggregate}, coalesce((SELECT NULL::bigint",
    ),
    Change(
        "few: a first ticket continues the oldest entry",
        "ORDER BY e.version DESC LIMIT 1), 0) + 1)",
        "ORDER BY e.version LIMIT 1), 0) + 1)",
    ),
    Change("few: a first version is two", "LIMIT 1), 0) + 1)\n", "LIMIT 1), 0) + 2)\n"),
    Change(
        "few: a ticket that was made meanwhile stands still",
        "DO UPDATE SET version = t.version + 1\n        RETURNING t.version INTO",
        "DO UPDATE SET version = t.version\n        RETURNING t.version INTO",
    ),
    Change(
        "few: the record before is another one",
        "AND e.version = v_version - 1;\n        SELECT r",
        "AND e.version = 1;\n        SELECT r",
    ),
    Change(
        "few: the head of what was pruned is not looked for",
        "IF v_hash IS NULL THEN\n          SELECT t",
        "IF false THEN\n          SELECT t",
    ),
    Change("few: any head will do", "AND t.head_version = v_version - 1;", ";"),
    Change(
        "few: a missing head is not noticed",
        "IF v_hash IS NULL THEN\n          {_refuse",
        "IF false THEN\n          {_refuse",
    ),
    Change(
        "many: a stale ticket is not noticed",
        "AND p_expected[n] <> o_versions[n] - 1 THEN",
        "AND false THEN",
    ),
    Change(
        "many: every ticket is stale",
        "AND p_expected[n] <> o_versions[n] - 1 THEN",
        "AND p_expected[n] = o_versions[n] - 1 THEN",
    ),
    Change(
        "many: a ticket ahead passes",
        "AND p_expected[n] <> o_versions[n] - 1 THEN",
        "AND p_expected[n] < o_versions[n] - 1 THEN",
    ),
    Change(
        "many: only the first ticket is compared",
        "AND p_expected[n] <> o_versions[n] - 1 THEN",
        "AND p_expected[1] <> o_versions[1] - 1 THEN",
    ),
    Change(
        "many: a created aggregate is stale", "IF p_expected[n] <> {_CREATED} AND", "IF true AND"
    ),
    Change(
        "many: created aggregates take tickets",
        "WHERE g.expected IS DISTINCT FROM {_CREATED} ORDER",
        "WHERE true ORDER",
    ),
    Change(
        "many: tickets are redeemed in no order",
        "ORDER BY g.n\n        ON CONFLICT",
        "ORDER BY g.n DESC\n        ON CONFLICT",
    ),
    Change(
        "many: versions are in another order",
        "coalesce(r.version, 1) ORDER BY g.n",
        "coalesce(r.version, 1) ORDER BY g.n DESC",
    ),
    Change(
        "many: hashes are in another order",
        "coalesce(r.record_hash, t.head_hash) ORDER BY w.n)",
        "coalesce(r.record_hash, t.head_hash) ORDER BY w.n DESC)",
    ),
    Change(
        "many: versions stand still",
        "DO UPDATE SET version = t.version + 1\n        RETURNING t.aggregate_name",
        "DO UPDATE SET version = t.version\n        RETURNING t.aggregate_name",
    ),
    Change(
        "many: a first ticket forgets the entries",
        "SELECT g.name, coalesce((SELECT e.version",
        "SELECT g.name, coalesce((SELECT NULL::bigint",
    ),
    Change(
        "many: the heads of what was pruned are not looked for",
        "pg_catalog.array_agg(coalesce(r.record_hash, t.head_hash) ORDER",
        "pg_catalog.array_agg(coalesce(r.record_hash) ORDER",
    ),
    Change(
        "many: any head will do",
        "t.aggregate_name = w.name AND t.head_version = w.version - 1",
        "t.aggregate_name = w.name",
    ),
    Change("many: a missing head is not noticed", "IF v_made > 0 THEN", "IF false THEN"),
    Change("many: the wrong aggregate has no head", "min(w.n) FILTER", "max(w.n) FILTER"),
    Change(
        "few are always many",
        "count(*) FROM pg_catalog.unnest(p_expected) AS e(version)",
        "0 FROM pg_catalog.unnest(p_expected) AS e(version)",
    ),
    # Aggregates that are created.
    Change(
        "a created aggregate takes a ticket", "IF p_expected[n] = {_CREATED} THEN", "IF false THEN"
    ),
    Change(
        "versions of one are written out",
        "IF v_hashes IS NULL THEN o_versions := NULL; END IF;",
        "",
    ),
    Change("who was created twice is not noticed", "IF v_made < v_count THEN", "IF false THEN"),
    Change(
        "who was created twice keeps version 1",
        "o_versions[n] := v_version;\n      v_hashes[n] := v_hash;\n      INSERT",
        "v_hashes[n] := v_hash;\n      INSERT",
    ),
    Change(
        "who was created twice binds no record before",
        "o_versions[n] := v_version;\n      v_hashes[n] := v_hash;\n      INSERT",
        "o_versions[n] := v_version;\n      INSERT",
    ),
    Change(
        "an effect may stand before its cause", "IF v_before > v_position THEN", "IF false THEN"
    ),
    Change(
        "who was created twice is always stale", "IF v_before > v_position THEN", "IF true THEN"
    ),
    # What is kept of the chain.
    Change(
        "the record keeps no hashes before",
        "CASE WHEN o_versions IS NOT NULL THEN v_joined END",
        "NULL",
    ),
    # Fences and ids.
    Change(
        "a fence is not looked for",
        "ON CONFLICT (record_id) DO NOTHING;\n  IF NOT FOUND THEN",
        "ON CONFLICT (record_id) DO NOTHING;\n  IF false THEN",
    ),
    Change("a fence counts as a record", "AND o.position IS NOT NULL) THEN", ") THEN"),
    Change("a record counts as a fence", "AND o.position IS NOT NULL) THEN", "AND false) THEN"),
    Change(
        "the key is not kept",
        "(p_record, v_position, p_idempotency_key)",
        "(p_record, v_position, NULL)",
    ),
    Change(
        "the record does not tell its key", "v_now,\n    p_idempotency_key);", "v_now,\n    NULL);"
    ),
    Change(
        "a record looks like a fence",
        "VALUES (p_record, v_position, p_idem",
        "VALUES (p_record, NULL, p_idem",
    ),
    # Order.
    Change(
        "the position is drawn before the tickets are redeemed",
        "  v_position bigint;\n",
        "  v_position bigint := pg_catalog.nextval({_name_sequence(s)});\n",
        also=("  v_position := pg_catalog.nextval({_name_sequence(s)});\n", ""),
    ),
    # What is written.
    Change(
        "entries have another version",
        "SELECT i.name, i.version, v_position",
        "SELECT i.name, 1, v_position",
    ),
    Change("one entry has version 1", "coalesce(o_versions[1], 1), v_position", "1, v_position"),
    Change("parts are not counted", "1 + coalesce(pg_catalog.cardinality(p_more), 0)", "1"),
    Change("further parts are lost", "IF p_more IS NOT NULL THEN", "IF false THEN"),
    Change(
        "parts are numbered from 2",
        "SELECT v_position, i.n, i.first",
        "SELECT v_position, i.n + 1, i.first",
    ),
    Change("no tokens", "IF p_metadata IS NOT NULL THEN", "IF false THEN"),
    Change(
        "every other pair has no token",
        "pg_catalog.cardinality(p_metadata), 2)",
        "pg_catalog.cardinality(p_metadata), 4)",
    ),
    Change(
        "tokens of values and keys",
        '{state_token("p_metadata[n]", "p_metadata[n + 1]")}',
        '{state_token("p_metadata[n + 1]", "p_metadata[n]")}',
    ),
    Change("no metadata", "v_joined END, p_metadata, o_hash", "v_joined END, NULL, o_hash"),
    # Checks, guards and partitions.
    Change(
        "an append passes the checks of the log's own marks",
        "{list_checks(s, by_anybody=by_anybody)}",
        "{list_checks(s, by_anybody=False)}",
    ),
    Change(
        "the log's own marks must pass every check",
        "{list_checks(s, by_anybody=by_anybody)}",
        "{list_checks(s, by_anybody=True)}",
    ),
    Change(
        "the function has only the rights of its caller",
        'name="append", rights=DEFINER',
        'name="append", rights=PINNED',
    ),
    Change("the guards' tally is not settled", "IF p_tally IS NOT NULL THEN", "IF false THEN"),
    Change(
        "no partition is made ahead", "IF v_position & {_LOOK_AHEAD - 1} = 0 THEN", "IF false THEN"
    ),
)
