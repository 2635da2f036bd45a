"""The hashes of `oplog.crypto.hashing` in PL/pgSQL, without percent signs.

The database computes them itself, from what it stores: a role that may append cannot give a record
a hash that readers refuse. Tests compare both forms.
"""

from __future__ import annotations

_FEW = 8
"""So many texts are joined in a loop, which needs no executor; more in a statement."""


def hash_body_statements() -> str:
    """PL/pgSQL that sets `v_body` to what `hash_body` hashes, and `v_body_hash` to the hash.

    It reads the arguments of the append function. The function around it declares both, `v_bytes`,
    `v_count` for the number of aggregates and `v_texts` for that of texts in metadata.
    """
    return f"""v_bytes := pg_catalog.convert_to(p_key_id, 'UTF8');
  v_body := 'oplog/v1/record-body'::bytea || '\\x00'::bytea || pg_catalog.int4send(p_format)
    || pg_catalog.uuid_send(p_record) || {_frame("v_bytes")} || pg_catalog.int4send(v_texts / 2);
  {_frame_texts("p_metadata", "v_texts")}
  IF p_idempotency_key IS NULL THEN
    v_body := v_body || '\\x00'::bytea;
  ELSE
    v_bytes := pg_catalog.convert_to(p_idempotency_key, 'UTF8');
    v_body := v_body || '\\x01'::bytea || {_frame("v_bytes")};
  END IF;
  v_body := v_body || pg_catalog.int4send(v_count);
  {_frame_texts("p_aggregates", "v_count")}
  v_body := v_body || pg_catalog.int4send(1 + coalesce(pg_catalog.cardinality(p_more), 0))
    || pg_catalog.int4send(0) || pg_catalog.sha256(p_data);
  IF p_more IS NOT NULL THEN
    SELECT pg_catalog.string_agg(pg_catalog.int4send(i.first) || pg_catalog.sha256(i.data),
        ''::bytea ORDER BY i.n) INTO v_bytes
      FROM ROWS FROM (pg_catalog.unnest(p_firsts), pg_catalog.unnest(p_more)) WITH ORDINALITY
        AS i(first, data, n);
    v_body := v_body || v_bytes;
  END IF;
  v_body_hash := pg_catalog.sha256(v_body);"""


def hash_record_statements() -> str:
    """PL/pgSQL that sets `o_hash` to the hash of the record, by `hash_record`.

    Reads `v_body_hash`, `v_position`, `v_now`, `o_versions` and `v_hashes`; sets `v_joined` to the
    hashes before, one after the other.
    """
    return """IF o_versions IS NOT NULL THEN
    SELECT pg_catalog.string_agg(h.hash, ''::bytea ORDER BY h.n) INTO v_joined
      FROM pg_catalog.unnest(v_hashes) WITH ORDINALITY AS h(hash, n);
    SELECT pg_catalog.string_agg(pg_catalog.int8send(v.version), ''::bytea ORDER BY v.n)
      INTO v_numbers FROM pg_catalog.unnest(o_versions) WITH ORDINALITY AS v(version, n);
  END IF;
  o_hash := pg_catalog.sha256('oplog/v1/record'::bytea || '\\x00'::bytea || v_body_hash
    || pg_catalog.int8send(v_position) || pg_catalog.timestamptz_send(v_now)
    || v_numbers || v_joined);"""


def _frame_texts(texts: str, count: str) -> str:
    """PL/pgSQL that appends an array of texts to `v_body`, each with its length."""
    return f"""IF {count} <= {_FEW} THEN
    FOR n IN 1 .. {count} LOOP
      v_bytes := pg_catalog.convert_to({texts}[n], 'UTF8');
      v_body := v_body || {_frame("v_bytes")};
    END LOOP;
  ELSE
    SELECT pg_catalog.string_agg({_frame("t.data")}, ''::bytea ORDER BY t.n) INTO v_bytes
      FROM (SELECT pg_catalog.convert_to(a.text, 'UTF8') AS data, a.n
        FROM pg_catalog.unnest({texts}) WITH ORDINALITY AS a(text, n)) t;
    v_body := v_body || v_bytes;
  END IF;"""


def _frame(data: str) -> str:
    return f"pg_catalog.int4send(pg_catalog.octet_length({data})) || {data}"
