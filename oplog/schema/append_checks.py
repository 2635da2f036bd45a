"""Checks of the append function's arguments, as PL/pgSQL.

Roles may call the function with arguments of their own. What is accepted here is read by everybody
else, so that everything which a reader, an archive or an index relies on is checked: a record that
no reader can take, or no archive, would stop all that come after it. What only a key can tell is
whether the sealed bytes open.
"""

from __future__ import annotations

from oplog.crypto.seal import FORMAT_PLAIN, FORMAT_SEALED
from oplog.entry import (
    MAX_AGGREGATE_BYTES,
    MAX_AGGREGATES,
    MAX_METADATA_KEY_BYTES,
    MAX_METADATA_VALUE_BYTES,
    MAX_METADATA_VALUES,
    MAX_NAMES_BYTES,
    MAX_PART_BYTES,
    MAX_RECORD_BYTES,
)
from oplog.schema.guard import FORMAT_MARK
from oplog.schema.mark_names import (
    ADOPTED,
    ADOPTION_PREFIX,
    QUARANTINE_AGGREGATE,
    REQUEST_PREFIX,
    RETIRED,
    SCHEMA_CHANGE,
)

ASYNCHRONOUS_COMMIT = "OP005"
"""SQLSTATE of an append in a transaction that would not wait for its own durability."""
KEY_RETIRED = "OP010"
"""SQLSTATE of an append of a record that is sealed with a retired key."""
MAX_STORED_PART_BYTES = MAX_PART_BYTES + MAX_PART_BYTES // 8
"""Largest part as stored, in bytes: sealed, and perhaps padded."""
MAX_STORED_RECORD_BYTES = MAX_RECORD_BYTES + MAX_RECORD_BYTES // 16
"""All parts of a record as stored, in bytes. With names of aggregates, an archive can hold it."""
MAX_STORED_PARTS = 65_536
MAX_IDEMPOTENCY_KEY_BYTES = 1024
MAX_KEY_ID_BYTES = 128
_NAME_BYTES = 48
"""What each aggregate takes in an archive beside its name."""
_KEPT_FOR_MARKS = (QUARANTINE_AGGREGATE,)
"""Where every reader looks for marks: nobody else may fill that up."""


def list_checks(s: str, *, by_anybody: bool) -> str:
    """The checks; `by_anybody` adds those that the log's own marks need not pass."""
    checks = [_check_scalars(), _check_arrays(), _check_parts(), _check_metadata(), _check_names()]
    if by_anybody:
        checks += [_refuse_key(s), _refuse_marks(), _refuse_reserved()]
    return "\n  ".join([*checks, _refuse_asynchronous()])


def _refuse(condition: str, message: str, *, hint: str = "") -> str:
    remedy = hint or "append records with the oplog library: it keeps all limits"
    return f"""IF {condition} THEN
    RAISE EXCEPTION USING errcode = '22023', message = 'oplog: {message}',
      hint = '{remedy}';
  END IF;"""


def _check_scalars() -> str:
    known = f"{FORMAT_SEALED}, {FORMAT_PLAIN}, {FORMAT_MARK}"
    return "\n  ".join(
        (
            _refuse(
                "p_record IS NULL OR p_key_id IS NULL OR p_data IS NULL OR p_asynchronous IS NULL",
                "a record has an id, a key id and data",
            ),
            f"""IF p_format IS NULL OR p_format NOT IN ({known}) THEN
    RAISE EXCEPTION USING errcode = '22023',
      message = pg_catalog.concat('oplog: a record of format ', p_format, ' cannot be appended');
  END IF;""",
            _refuse(
                f"(p_format = {FORMAT_SEALED}) <> (p_key_id <> '') "
                f"OR pg_catalog.octet_length(p_key_id) > {MAX_KEY_ID_BYTES}",
                "a sealed record has a key id, and no other has one",
            ),
            _refuse(
                "pg_catalog.octet_length(p_idempotency_key) "
                f"NOT BETWEEN 1 AND {MAX_IDEMPOTENCY_KEY_BYTES}",
                f"an idempotency key has 1 to {MAX_IDEMPOTENCY_KEY_BYTES} bytes",
            ),
        )
    )


def _check_arrays() -> str:
    return "\n  ".join(
        (
            # Of an array that does not begin at 1 each element would be read as another one.
            _refuse(
                "coalesce(v_count, 0) = 0 OR pg_catalog.array_ndims(p_aggregates) <> 1 "
                "OR pg_catalog.array_lower(p_aggregates, 1) <> 1",
                "a record needs aggregates",
            ),
            _refuse(
                "pg_catalog.cardinality(p_expected) <> v_count "
                "OR pg_catalog.array_ndims(p_expected) <> 1 "
                "OR pg_catalog.array_lower(p_expected, 1) <> 1",
                "each aggregate has one expected version",
            ),
            _refuse(
                f"v_count > {MAX_AGGREGATES} OR v_count * {_NAME_BYTES} + pg_catalog.octet_length("
                f"pg_catalog.array_to_string(p_aggregates, '')) > {MAX_NAMES_BYTES}",
                f"a record has at most {MAX_AGGREGATES} aggregates, whose names have at most "
                f"{MAX_NAMES_BYTES} bytes",
            ),
        )
    )


def _check_parts() -> str:
    beside = "pg_catalog.cardinality(p_more)"
    shape = " OR ".join(
        (
            f"pg_catalog.cardinality(p_firsts) <> {beside}",
            f"{beside} NOT BETWEEN 1 AND {MAX_STORED_PARTS - 1}",
            "pg_catalog.array_ndims(p_more) <> 1",
            "pg_catalog.array_ndims(p_firsts) <> 1",
            "pg_catalog.array_lower(p_more, 1) <> 1",
            "pg_catalog.array_lower(p_firsts, 1) <> 1",
        )
    )
    return f"""{
        _refuse("(p_firsts IS NULL) <> (p_more IS NULL)", "each further part has a first aggregate")
    }
  {_refuse(f"pg_catalog.octet_length(p_data) > {MAX_STORED_PART_BYTES}", _TOO_LARGE)}
  IF p_more IS NOT NULL THEN
  {_refuse(shape, "the parts of a record are not arrays of one length")}
    v_size := pg_catalog.octet_length(p_data);
    FOR n IN 1 .. {beside} LOOP
      {
        _refuse(
            "p_firsts[n] IS NULL OR p_more[n] IS NULL OR p_firsts[n] NOT BETWEEN "
            "(CASE WHEN n = 1 THEN 0 ELSE p_firsts[n - 1] END) AND v_count - 1",
            "the parts of a record begin at rising aggregates",
        )
    }
      {_refuse(f"pg_catalog.octet_length(p_more[n]) > {MAX_STORED_PART_BYTES}", _TOO_LARGE)}
      v_size := v_size + pg_catalog.octet_length(p_more[n]);
    END LOOP;
    {_refuse(f"v_size > {MAX_STORED_RECORD_BYTES}", _TOO_LARGE)}
  END IF;"""


_TOO_LARGE = (
    f"a part of a record has at most {MAX_STORED_PART_BYTES} bytes, and all of them together "
    f"{MAX_STORED_RECORD_BYTES}"
)


def _refuse_key(s: str) -> str:
    # A snapshot of the whole transaction may be older than a retirement: locking the row raises
    # 40001 then. It may also be older than the key: then the INSERT, which is taken back in any
    # case, raises 40001, and the key is known.
    valid = f"PERFORM FROM {s}.oplog_key k WHERE k.key_id = p_key_id AND k.retired_at IS NULL"
    return f"""IF p_format = {FORMAT_SEALED} THEN
    IF pg_catalog.current_setting('transaction_isolation') = 'read committed' THEN
      {valid};
    ELSE
      {valid} FOR SHARE;
    END IF;
    IF NOT FOUND THEN
      IF EXISTS (SELECT FROM {s}.oplog_key k WHERE k.key_id = p_key_id) THEN
        RAISE EXCEPTION USING errcode = '{KEY_RETIRED}', message = pg_catalog.concat(
          'oplog: the key ', pg_catalog.quote_literal(p_key_id), ' was retired, and seals no more'),
          hint = 'run the whole transaction again with a keyring that has a newer current key';
      END IF;
      BEGIN
        INSERT INTO {s}.oplog_key (key_id, check_value) VALUES (p_key_id, pg_catalog.sha256(''))
          ON CONFLICT DO NOTHING;
        RAISE EXCEPTION USING errcode = '22023', message = pg_catalog.concat(
          'oplog: the log does not know the key ', pg_catalog.quote_nullable(p_key_id)),
          hint = 'a key is in oplog_key, with its check value, before a record is sealed with it';
      EXCEPTION WHEN serialization_failure THEN NULL;
      END;
    END IF;
  END IF;"""


def _check_metadata() -> str:
    shape = " OR ".join(
        (
            f"v_texts NOT BETWEEN 2 AND {2 * MAX_METADATA_VALUES}",
            "(v_texts & 1) <> 0",
            "pg_catalog.array_ndims(p_metadata) <> 1",
            "pg_catalog.array_lower(p_metadata, 1) <> 1",
        )
    )
    key, value = f"1 AND {MAX_METADATA_KEY_BYTES}", f"0 AND {MAX_METADATA_VALUE_BYTES}"
    size = "pg_catalog.octet_length(p_metadata[n])"
    text = (
        f"p_metadata[n] IS NULL OR (n & 1) = 1 AND {size} NOT BETWEEN {key} "
        f"OR {size} NOT BETWEEN {value}"
    )
    return f"""IF p_metadata IS NOT NULL THEN
    {_refuse(shape, "metadata are pairs of a key and a value")}
    FOR n IN 1 .. v_texts LOOP
      {_refuse(text, "a key or a value of metadata is missing or too long")}
    END LOOP;
  END IF;"""


def _check_names() -> str:
    # Aggregates are locked in the order given: another order would be half of a deadlock.
    size = f"pg_catalog.octet_length(v_name) NOT BETWEEN 1 AND {MAX_AGGREGATE_BYTES}"
    kept = ", ".join(f"'{name}'" for name in _KEPT_FOR_MARKS)
    return f"""FOR n IN 1 .. v_count LOOP
    v_name := p_aggregates[n];
    IF v_name <= v_last COLLATE "C" OR v_name IS NULL THEN
      RAISE EXCEPTION USING errcode = '22023',
        message = 'oplog: aggregates are not sorted or not distinct';
    END IF;
    {_refuse(size, f"the name of an aggregate has 1 to {MAX_AGGREGATE_BYTES} bytes")}
    IF pg_catalog.starts_with(v_name, '{ADOPTION_PREFIX}') OR v_name IN ({kept}) THEN
      v_reserved := v_name;
    END IF;
    v_last := v_name;
  END LOOP;"""


def _refuse_marks() -> str:
    """A mark says which rows were not logged, or that all rows of a type are gone."""
    return f"""IF p_format = {FORMAT_MARK} AND (v_count <> 1 OR p_data <> ''::bytea
      OR p_more IS NOT NULL OR NOT pg_catalog.starts_with(v_last, '{REQUEST_PREFIX}')) THEN
    RAISE EXCEPTION USING errcode = '42501',
      message = 'oplog: a mark is written by the functions of the log only',
      hint = 'op.retire_type says in a migration that a table is gone';
  END IF;"""


def _refuse_reserved() -> str:
    """Replay and restore go by these records: an adoption replaces what the log knew of a type."""
    # A row's own name may begin like that: without these keys of metadata it says nothing.
    return f"""IF v_reserved IN ({", ".join(f"'{name}'" for name in _KEPT_FOR_MARKS)})
    OR v_reserved IS NOT NULL AND NOT pg_catalog.pg_has_role(session_user, current_user, 'MEMBER')
      AND EXISTS (SELECT FROM pg_catalog.generate_series(1, v_texts, 2) AS n
        WHERE p_metadata[n] IN ('{ADOPTED}', '{RETIRED}', '{SCHEMA_CHANGE}')) THEN
    RAISE EXCEPTION USING errcode = '42501',
      message = pg_catalog.concat('oplog: aggregate ', pg_catalog.quote_literal(v_reserved),
        ' is kept for the owner of the log'),
      hint = 'adopt rows as the role that owns the tables of the log, or as a member of it';
  END IF;"""


def _refuse_asynchronous() -> str:
    # Off, a crash loses transactions that were acknowledged; nothing in the log would say so.
    return f"""IF NOT p_asynchronous
      AND pg_catalog.current_setting('synchronous_commit') = 'off' THEN
    RAISE EXCEPTION USING errcode = '{ASYNCHRONOUS_COMMIT}',
      message = 'oplog: synchronous_commit is off: a crash would lose acknowledged transactions',
      hint = 'SET synchronous_commit = on, or say Oplog(asynchronous_commit=True)';
  END IF;"""
