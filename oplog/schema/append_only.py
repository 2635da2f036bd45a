"""Triggers that refuse to change or remove what the log holds, as DDL.

No setting switches them off. Partitions have one of their own, which is made with them.
"""

from __future__ import annotations

from oplog.schema.partitions import PARTITIONED

APPEND_ONLY = "OP002"
"""SQLSTATE of an attempt to change or remove what the log holds."""
_PRUNED_PATTERN = "^oplog_(entry|(record|part|token)(_p[0-9]+)?)$"
"""Names of the tables from which pruning deletes, as a regular expression of Postgres."""


def create_append_only_statements(s: str) -> list[str]:
    """The trigger function, and the triggers of the tables in the quoted schema `s`."""
    statements = [_refuse_function(s)]
    whole = ("type", "type_numbers", "log", "pruned", "outcome")
    for table in (*PARTITIONED, "entry", *whole):
        statements += _always(
            s, table, f"BEFORE UPDATE OR DELETE OR TRUNCATE ON {s}.oplog_{table} FOR EACH STATEMENT"
        )
    for table in ("ticket", "key"):
        statements += _always(
            s, table, f"BEFORE DELETE OR TRUNCATE ON {s}.oplog_{table} FOR EACH STATEMENT"
        )
    # A role that could declare what is pruned could make readers refuse a whole log.
    statements += _always(
        s,
        "pruned",
        f"BEFORE INSERT ON {s}.oplog_pruned FOR EACH STATEMENT",
        suffix="_declare",
    )
    # A ticket only moves forward by one; a key only gets re-wrapped, and retired for good.
    # WHEN is evaluated without calling the function, so the ordinary redeem pays nothing.
    statements += _always(
        s,
        "ticket",
        f"""BEFORE UPDATE ON {s}.oplog_ticket FOR EACH ROW
  WHEN (NEW.aggregate_name IS DISTINCT FROM OLD.aggregate_name
    OR NEW.version IS DISTINCT FROM OLD.version + 1
    OR NEW.head_version IS DISTINCT FROM OLD.head_version
    OR NEW.head_hash IS DISTINCT FROM OLD.head_hash)""",
        suffix="_step",
    )
    statements += _always(
        s,
        "key",
        f"""BEFORE UPDATE ON {s}.oplog_key FOR EACH ROW
  WHEN (NEW.key_id IS DISTINCT FROM OLD.key_id
    OR NEW.check_value IS DISTINCT FROM OLD.check_value
    OR NEW.created_at IS DISTINCT FROM OLD.created_at
    OR OLD.retired_at IS NOT NULL AND NEW.retired_at IS DISTINCT FROM OLD.retired_at)""",
        suffix="_rewrap",
    )
    return statements


def _refuse_function(s: str) -> str:
    return f"""CREATE FUNCTION {s}.oplog_refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
BEGIN
  -- Only a member of the owner prunes, in the very transaction that declares what goes. Its id
  -- alone would not do: in a copy of the log on another server it is another transaction's.
  IF (tg_op = 'INSERT' OR (tg_op = 'DELETE' AND tg_table_name ~ '{_PRUNED_PATTERN}'
        OR tg_op = 'UPDATE' AND tg_table_name IN ('oplog_entry', 'oplog_outcome', 'oplog_ticket'))
      AND EXISTS (SELECT FROM {s}.oplog_pruned p
        WHERE p.transaction_id = pg_current_xact_id_if_assigned()
          AND p.xmin = p.transaction_id::xid))
    AND pg_has_role(current_user,
      (SELECT c.relowner FROM pg_class c WHERE c.oid = tg_relid), 'MEMBER')
  THEN RETURN NEW; END IF;
  RAISE EXCEPTION USING errcode = '{APPEND_ONLY}',
    message = pg_catalog.concat('oplog: ', tg_op, ' on ', pg_catalog.quote_ident(tg_table_schema),
      '.', pg_catalog.quote_ident(tg_table_name), ' is refused: the log is append-only'),
    hint = 'what was written stays; record a correction as a new change';
END $oplog_fn$"""


def _always(s: str, table: str, definition: str, *, suffix: str = "") -> list[str]:
    name = f"oplog_append_only{suffix}"
    return [
        f"CREATE TRIGGER {name} {definition} EXECUTE FUNCTION {s}.oplog_refuse_change()",
        # ALWAYS: session_replication_role = replica would switch an ordinary trigger off.
        f"ALTER TABLE {s}.oplog_{table} ENABLE ALWAYS TRIGGER {name}",
    ]
