"""What rows of the log can be at all, as CHECK constraints: for mistakes of the owner.

The log's functions check what they write, and more than this. The owner may insert rows by hand,
and after switching triggers off also change them. PostgreSQL reads the text of every constraint of
a table anew for each statement that writes it, some microseconds for each. So the tables that every
append writes have only those that keep one bad row from spoiling good ones: the next record
continues the hash of the one before. The statements hold no percent sign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from oplog.postgres.quoting import quote_literal
from oplog.schema.append_checks import (
    MAX_KEY_ID_BYTES,
    MAX_STORED_PART_BYTES,
    MAX_STORED_PARTS,
)
from oplog.schema.registering import CHECK_VALUE_BYTES, MAX_DESCRIPTOR_BYTES, MAX_TYPE_NAME_BYTES

HIGHEST_POSITION = 1 << 62
"""No record has this position or a higher one: half of what the type holds stays free."""
HASH_BYTES = 32
VALIDATED_AT_ONCE = 64 * 1024 * 1024
"""An upgrade, which locks a table, checks the rows of one with at most so many bytes."""
UNCHECKED = "NOT VALID"
"""What PostgreSQL prints after a constraint for which older rows were not checked."""


@dataclass(frozen=True, slots=True)
class RowCheck:
    """A constraint of a table of the log: for each row `condition` holds, or is not known.

    A condition is spelled so that PostgreSQL prints it like that: no IN, no BETWEEN.
    """

    table: str
    name: str
    condition: str

    @property
    def form(self) -> str:
        """The definition in the form that its print comes to as well."""
        return normalise_check(f"CHECK ({self.condition})")


@dataclass(frozen=True, slots=True)
class CheckFault:
    """A constraint that is not as it was installed."""

    table: str
    name: str
    kind: str
    """missing, altered or unchecked."""


_IN_RANGE = f"position > 0 AND position < '{HIGHEST_POSITION}'::bigint"
ROW_CHECKS = (
    # Positions have room on both sides, so that no record uses up those after it; a time that is
    # not finite would be before or after all others.
    RowCheck(
        "oplog_record",
        "oplog_record_bounds",
        f"{_IN_RANGE} AND parts > 0 AND pg_catalog.isfinite(created_at)",
    ),
    RowCheck(
        "oplog_record",
        "oplog_record_hash",
        f"pg_catalog.octet_length(record_hash) = {HASH_BYTES}",
    ),
    RowCheck("oplog_part", "oplog_part_number_check", "number > 0"),
    RowCheck("oplog_part", "oplog_part_first_check", "first >= 0"),
    RowCheck(
        "oplog_part",
        "oplog_part_bounds",
        f"{_IN_RANGE} AND number < {MAX_STORED_PARTS} "
        f"AND pg_catalog.octet_length(data) <= {MAX_STORED_PART_BYTES}",
    ),
    RowCheck("oplog_entry", "oplog_entry_version_check", "version > 0"),
    RowCheck("oplog_entry", "oplog_entry_position_check", "position >= 0"),
    RowCheck("oplog_ticket", "oplog_ticket_version_check", "version >= 0"),
    RowCheck("oplog_type", "oplog_type_revision_check", "revision > 0"),
    RowCheck(
        "oplog_type",
        "oplog_type_form",
        f"type_name <> '' AND pg_catalog.octet_length(type_name) <= {MAX_TYPE_NAME_BYTES} "
        "AND pg_catalog.jsonb_typeof(shape) = 'object' "
        f"AND pg_catalog.octet_length(descriptor) <= {MAX_DESCRIPTOR_BYTES}",
    ),
    RowCheck(
        "oplog_type_numbers",
        "oplog_type_numbers_form",
        "type_name <> '' AND revision > 0 AND database_id <> '' AND table_oid > 0 "
        "AND pg_catalog.jsonb_typeof(columns) = 'object'",
    ),
    RowCheck(
        "oplog_key",
        "oplog_key_form",
        f"key_id <> '' AND pg_catalog.octet_length(key_id) <= {MAX_KEY_ID_BYTES} "
        f"AND pg_catalog.octet_length(check_value) = {CHECK_VALUE_BYTES} "
        "AND pg_catalog.isfinite(created_at)",
    ),
    RowCheck(
        "oplog_pruned",
        "oplog_pruned_form",
        f"number > 0 AND url <> '' AND generation >= 0 AND sequence >= 0 "
        f"AND pg_catalog.octet_length(chain) = {HASH_BYTES} AND {_IN_RANGE} AND entries >= 0",
    ),
)


def create_row_checks(s: str) -> str:
    """A statement that adds the constraints that are missing or altered, in the quoted schema `s`.

    Rows that are there are checked at once in a small table only. In a large one that would take
    minutes in which nobody writes; `oplog maintain` checks them later, without a lock that stops
    writers. A row that breaks a constraint stops no upgrade.
    """
    rows = ",\n    ".join(
        "({})".format(
            ", ".join(
                quote_literal(text)
                for text in (f"{s}.{one.table}", one.name, one.condition, one.form)
            )
        )
        for one in ROW_CHECKS
    )
    printed = "pg_catalog.pg_get_constraintdef(c.oid)"
    return f"""DO $oplog_do$
DECLARE
  v_check record;
  v_found text;
BEGIN
  FOR v_check IN SELECT t.relation::pg_catalog.regclass AS relation, t.name, t.condition, t.form
  FROM (VALUES
    {rows}) AS t(relation, name, condition, form)
  LOOP
    SELECT {_normalise_in_sql(printed)} INTO v_found FROM pg_catalog.pg_constraint c
    WHERE c.conrelid = v_check.relation AND c.conname = v_check.name;
    CONTINUE WHEN v_found = v_check.form;
    IF v_found <> pg_catalog.concat(v_check.form, '{normalise_check(UNCHECKED)}') THEN
      EXECUTE pg_catalog.concat('ALTER TABLE ', v_check.relation, ' DROP CONSTRAINT ',
        v_check.name);
      v_found := NULL;
    END IF;
    IF v_found IS NULL THEN
      EXECUTE pg_catalog.concat('ALTER TABLE ', v_check.relation, ' ADD CONSTRAINT ',
        v_check.name, ' CHECK (', v_check.condition, ') {UNCHECKED}');
    END IF;
    IF (SELECT pg_catalog.sum(pg_catalog.pg_relation_size(r.oid)) FROM (
          SELECT v_check.relation::oid AS oid
          UNION SELECT relid::oid FROM pg_catalog.pg_partition_tree(v_check.relation)) r)
        <= {VALIDATED_AT_ONCE} THEN
      BEGIN
        EXECUTE pg_catalog.concat('ALTER TABLE ', v_check.relation, ' VALIDATE CONSTRAINT ',
          v_check.name);
      EXCEPTION WHEN check_violation THEN NULL;
      END;
    END IF;
  END LOOP;
END $oplog_do$"""


def find_check_faults(found: Mapping[tuple[str, str], str]) -> list[CheckFault]:
    """Constraints that are missing, altered, or do not hold for older rows.

    `found` are definitions as PostgreSQL prints them, by table and name.
    """
    faults = []
    for check in ROW_CHECKS:
        printed = found.get((check.table, check.name))
        form = None if printed is None else normalise_check(printed)
        if form == check.form:
            continue
        unchecked = form == check.form + normalise_check(UNCHECKED)
        kind = "missing" if form is None else "unchecked" if unchecked else "altered"
        faults.append(CheckFault(check.table, check.name, kind))
    return faults


_DROPPED = r'[[:space:]()"]|::text|pg_catalog\.'


def normalise_check(definition: str) -> str:
    """A definition without what its DDL and PostgreSQL's print differ in."""
    return re.sub(_DROPPED.replace("[:space:]", r"\s"), "", definition.lower())


def _normalise_in_sql(definition: str) -> str:
    return (
        f"pg_catalog.regexp_replace(pg_catalog.lower({definition}), {quote_literal(_DROPPED)}, "
        "'', 'g')"
    )
