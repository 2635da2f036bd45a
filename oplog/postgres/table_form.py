"""Hashes of what decides what a statement stores in a table, as SQL expressions.

A process that is bound to a table knows its columns by name, and which values only the database
decides. If somebody renames a column, changes its type, or adds a default or a trigger, the same
statement stores something else. So a writer says what it took the tables for, and the append
compares. The hashes of one server are compared only with those of the same one.
"""

from __future__ import annotations


def hash_column(column: str) -> str:
    """A bigint for a row of `pg_attribute` with this alias: other for each table and number."""
    place = f"({column}.attrelid::bigint << 32) # {column}.atttypid::bigint"
    kind = (
        f"({column}.attnum::bigint << 33) # ({column}.atthasdef::integer::bigint << 32) "
        f"# {column}.atttypmod::bigint"
    )
    return (
        f"pg_catalog.hashnameextended({column}.attname, "
        f"pg_catalog.hashint8extended({place}, {kind}))"
    )


def hash_trigger(trigger: str) -> str:
    """A bigint for a row of `pg_trigger` with this alias."""
    enabled = f"pg_catalog.ascii({trigger}.tgenabled::text)::bigint"
    return f"pg_catalog.hashint8extended({trigger}.oid::bigint, {enabled})"


def is_created_trigger(trigger: str) -> str:
    """A condition: made by CREATE TRIGGER, for this table or for the one that it is a partition of.

    Before PostgreSQL 15 a trigger that a partition got from its table is called an internal one;
    since then those of constraints have a parent as well.
    """
    constraint = (
        "EXISTS (SELECT FROM pg_catalog.pg_constraint made "
        f"WHERE made.oid = {trigger}.tgconstraint AND made.contype <> 't')"
    )
    return f"(NOT {trigger}.tgisinternal OR {trigger}.tgparentid <> 0::oid AND NOT {constraint})"


def is_own_trigger(trigger: str) -> str:
    """A condition: the application's trigger, not one of the log's or of a constraint."""
    guard = f"pg_catalog.starts_with({trigger}.tgname::text, 'oplog_')"
    return f"{is_created_trigger(trigger)} AND NOT {guard}"


def hash_label(label: str) -> str:
    """A bigint for a row of `pg_enum` with this alias."""
    return f"pg_catalog.hashnameextended({label}.enumlabel, {label}.oid::bigint)"


def hash_triggers(oid: str) -> str:
    """A query: the triggers of a table by its oid; NULL if it has none."""
    return (
        f"SELECT pg_catalog.bit_xor({hash_trigger('g')}) FROM pg_catalog.pg_trigger g "
        f"WHERE g.tgrelid = {oid} AND {is_own_trigger('g')}"
    )


def hash_relations(oids: str) -> str:
    """A query: columns and triggers of tables and composite types, whose oids the array has."""
    return (
        f"SELECT pg_catalog.bit_xor(h.form) FROM (SELECT {hash_column('a')} AS form "
        f"FROM pg_catalog.pg_attribute a "
        f"WHERE a.attrelid = ANY ({oids}) AND a.attnum > 0 AND NOT a.attisdropped "
        f"UNION ALL SELECT {hash_trigger('g')} FROM pg_catalog.pg_trigger g "
        f"WHERE g.tgrelid = ANY ({oids}) AND {is_own_trigger('g')}) h"
    )


def hash_labels(oids: str) -> str:
    """A query: labels of enum types, whose own oids the array has. One that was added is none."""
    return (
        f"SELECT pg_catalog.bit_xor({hash_label('l')}) FROM pg_catalog.pg_enum l "
        f"WHERE l.oid = ANY ({oids})"
    )
