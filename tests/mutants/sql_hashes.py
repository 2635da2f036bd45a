"""Changes of what the hashes of a record bind, in `oplog.crypto.sql_hashing`."""

from __future__ import annotations

from tests.mutants.sql_change import Change

CHANGES = (
    # The body: its own fields.
    Change("body: another label", "oplog/v1/record-body", "oplog/v1/record"),
    Change(
        "body: no end of the label",
        "-body'::bytea || '\\\\x00'::bytea",
        "-body'::bytea",
    ),
    Change("body: no format", " || pg_catalog.int4send(p_format)\n", "\n"),
    Change("body: no record id", "|| pg_catalog.uuid_send(p_record) ||", "||"),
    Change(
        "body: the id before the format",
        "pg_catalog.int4send(p_format)\n    || pg_catalog.uuid_send(p_record)",
        "pg_catalog.uuid_send(p_record)\n    || pg_catalog.int4send(p_format)",
    ),
    Change(
        "body: no key id",
        '{_frame("v_bytes")} || pg_catalog.int4send(v_texts / 2)',
        "pg_catalog.int4send(v_texts / 2)",
    ),
    Change(
        "body: no length of the key id",
        '{_frame("v_bytes")} || pg_catalog.int4send(v_texts / 2)',
        "v_bytes || pg_catalog.int4send(v_texts / 2)",
    ),
    Change(
        "body: the key id in another encoding",
        "convert_to(p_key_id, 'UTF8')",
        "convert_to(p_key_id, 'LATIN1')",
    ),
    # Metadata.
    Change("body: no count of metadata", " || pg_catalog.int4send(v_texts / 2);", ";"),
    Change(
        "body: texts are counted, not pairs",
        "pg_catalog.int4send(v_texts / 2)",
        "pg_catalog.int4send(v_texts)",
    ),
    Change("body: no metadata", '{_frame_texts("p_metadata", "v_texts")}', ""),
    Change(
        "body: aggregates before metadata",
        '{_frame_texts("p_metadata", "v_texts")}',
        '{_frame_texts("p_aggregates", "v_count")}',
        also=(
            '{_frame_texts("p_aggregates", "v_count")}\n  v_body',
            '{_frame_texts("p_metadata", "v_texts")}\n  v_body',
        ),
    ),
    # The idempotency key.
    Change(
        "body: a key that is missing leaves no trace",
        "v_body := v_body || '\\\\x00'::bytea;",
        "NULL;",
    ),
    Change(
        "body: a key that is there is not told from one that is missing",
        "'\\\\x01'::bytea",
        "'\\\\x00'::bytea",
    ),
    Change("body: a key leaves no trace", "IF p_idempotency_key IS NULL THEN", "IF true THEN"),
    Change(
        "body: no length of the key",
        "'\\\\x01'::bytea || {_frame(\"v_bytes\")}",
        "'\\\\x01'::bytea || v_bytes",
    ),
    Change(
        "body: the key in another encoding",
        "convert_to(p_idempotency_key, 'UTF8')",
        "convert_to(p_idempotency_key, 'LATIN1')",
    ),
    # Aggregates.
    Change(
        "body: no count of aggregates",
        "v_body := v_body || pg_catalog.int4send(v_count);",
        "",
    ),
    Change("body: no aggregates", '{_frame_texts("p_aggregates", "v_count")}', ""),
    # Parts.
    Change(
        "body: no count of parts",
        "pg_catalog.int4send(1 + coalesce(pg_catalog.cardinality(p_more), 0))\n    || ",
        "",
    ),
    Change("body: parts are not counted", "1 + coalesce(pg_catalog.cardinality(p_more), 0)", "1"),
    Change(
        "body: the first part has no place",
        "|| pg_catalog.int4send(0) || pg_catalog.sha256(p_data)",
        "|| pg_catalog.sha256(p_data)",
    ),
    Change(
        "body: the first part is not bound",
        "pg_catalog.int4send(0) || pg_catalog.sha256(p_data)",
        "pg_catalog.int4send(0)",
    ),
    Change(
        "body: the first part is bound as it is",
        "pg_catalog.int4send(0) || pg_catalog.sha256(p_data)",
        "pg_catalog.int4send(0) || p_data",
    ),
    Change("body: further parts are not bound", "IF p_more IS NOT NULL THEN", "IF false THEN"),
    Change(
        "body: further parts have no place",
        "pg_catalog.int4send(i.first) || pg_catalog.sha256(i.data)",
        "pg_catalog.sha256(i.data)",
    ),
    Change(
        "body: of further parts only the place is bound",
        "pg_catalog.int4send(i.first) || pg_catalog.sha256(i.data)",
        "pg_catalog.int4send(i.first)",
    ),
    Change(
        "body: further parts are bound as they are",
        "pg_catalog.sha256(i.data)",
        "i.data",
    ),
    Change("body: parts in another order", "ORDER BY i.n)", "ORDER BY i.n DESC)"),
    Change(
        "body: no hash but the body itself",
        "v_body_hash := pg_catalog.sha256(v_body);",
        "v_body_hash := v_body;",
    ),
    # Texts, few and many.
    Change("few texts are many", "IF {count} <= {_FEW} THEN", "IF false THEN"),
    Change(
        "few texts: the last is not bound",
        "FOR n IN 1 .. {count} LOOP",
        "FOR n IN 1 .. {count} - 1 LOOP",
    ),
    Change(
        "few texts: no lengths",
        'v_body := v_body || {_frame("v_bytes")};\n    END LOOP;',
        "v_body := v_body || v_bytes;\n    END LOOP;",
    ),
    Change(
        "few texts: in another encoding",
        "convert_to({texts}[n], 'UTF8')",
        "convert_to({texts}[n], 'LATIN1')",
    ),
    Change(
        "many texts: not bound",
        "t;\n    v_body := v_body || v_bytes;\n",
        "t;\n",
    ),
    Change("many texts: no lengths", '{_frame("t.data")}', "t.data"),
    Change("many texts: in another order", "ORDER BY t.n)", "ORDER BY t.n DESC)"),
    Change(
        "many texts: in another encoding",
        "convert_to(a.text, 'UTF8')",
        "convert_to(a.text, 'LATIN1')",
    ),
    Change(
        "a length has eight bytes",
        "pg_catalog.int4send(pg_catalog.octet_length({data}))",
        "pg_catalog.int8send(pg_catalog.octet_length({data}))",
    ),
    # The chain.
    Change("another label", "'oplog/v1/record'", "'oplog/v1/record-body'"),
    Change("no end of the label", "record'::bytea || '\\\\x00'::bytea", "record'::bytea"),
    Change("the hash binds no body", "|| v_body_hash\n", "\n"),
    Change("the hash binds no position", "|| pg_catalog.int8send(v_position) ||", "||"),
    Change(
        "the hash binds time before position",
        "|| pg_catalog.int8send(v_position) || pg_catalog.timestamptz_send(v_now)",
        "|| pg_catalog.timestamptz_send(v_now) || pg_catalog.int8send(v_position)",
    ),
    Change(
        "the hash binds another time than is stored",
        "pg_catalog.timestamptz_send(v_now)",
        "pg_catalog.timestamptz_send(pg_catalog.now())",
    ),
    Change("the hash binds no versions", "|| v_numbers || v_joined", "|| v_joined"),
    Change("the hash binds no hashes before", "|| v_numbers || v_joined", "|| v_numbers"),
    Change(
        "the hash binds hashes before versions",
        "|| v_numbers || v_joined",
        "|| v_joined || v_numbers",
    ),
    Change("the chain is left out", "IF o_versions IS NOT NULL THEN", "IF false THEN"),
    Change(
        "hashes are bound in another order",
        "h.hash, ''::bytea ORDER BY h.n)",
        "h.hash, ''::bytea ORDER BY h.n DESC)",
    ),
    Change(
        "versions are bound in another order",
        "''::bytea ORDER BY v.n)",
        "''::bytea ORDER BY v.n DESC)",
    ),
)
