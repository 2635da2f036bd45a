"""The query that tells which sequence feeds which column. Text of SQL only.

A sequence feeds a column that owns it (serial and identity columns), and each column whose
default draws from it. A column that merely has the same name does not count.
"""

from __future__ import annotations

SEQUENCE_COLUMNS = """
  SELECT d.objid AS sequence, d.refobjid AS relation, d.refobjsubid AS number, 1 AS choice
  FROM pg_catalog.pg_depend d
  WHERE d.classid = 'pg_catalog.pg_class'::regclass
    AND d.refclassid = 'pg_catalog.pg_class'::regclass
    AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
  UNION ALL
  SELECT d.refobjid, f.adrelid, f.adnum, 2
  FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef f ON f.oid = d.objid
  WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass
    AND d.refclassid = 'pg_catalog.pg_class'::regclass"""
"""Oids of sequences and relations, and column numbers; `choice` is 1 for a column's own sequence.

A column that owns its sequence and draws from it by default is there twice. Relations that are
no sequences may be in the first column.
"""
