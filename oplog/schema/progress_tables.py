"""Tables that say how far something came: consumers, publishing, adoption, restore, following.

Each kind has a table of its own, so that each can be granted by itself, and so that no name that
a consumer chooses is taken for something else. The statements hold no percent sign.
"""

from __future__ import annotations

CONSUMER = "consumer"
ARCHIVE = "archive"
ADOPTION = "adoption"
RESTORE = "restore"
FOLLOWER = "follower"
PROGRESS_TABLES = (CONSUMER, ARCHIVE, ADOPTION, RESTORE, FOLLOWER)
"""All of them, without the prefix `oplog_`."""
OLD_TABLE = "oplog_checkpoint"
"""Held the rows of all five in earlier definitions of schema version 1."""

_UPDATED = "updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()"
_PLACE = f"""generation bigint NOT NULL CHECK (generation >= 0),
  sequence bigint NOT NULL CHECK (sequence >= 0),
  chain bytea NOT NULL,
  position bigint NOT NULL,
  {_UPDATED}"""


def create_progress_tables(s: str) -> list[str]:
    """Statements that create the tables in the quoted schema `s`."""
    return [
        f"""CREATE TABLE {s}.oplog_{CONSUMER} (
  name text COLLATE "C" PRIMARY KEY CHECK (name <> ''),
  cursor jsonb NOT NULL CHECK (pg_catalog.jsonb_typeof(cursor) = 'object'),
  position bigint NOT NULL,
  {_UPDATED})""",
        _archive_table(s),
        f"""CREATE TABLE {s}.oplog_{ADOPTION} (
  type_name text COLLATE "C" PRIMARY KEY,
  after jsonb CHECK (pg_catalog.jsonb_typeof(after) = 'object'),
  rows bigint NOT NULL DEFAULT 0 CHECK (rows >= 0),
  entries bigint NOT NULL DEFAULT 0 CHECK (entries >= 0),
  done boolean NOT NULL DEFAULT false,
  revision integer NOT NULL DEFAULT 0 CHECK (revision >= 0),
  {_UPDATED})""",
        # A database is restored once: the constant key keeps a second row out.
        f"""CREATE TABLE {s}.oplog_{RESTORE} (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  {_PLACE})""",
        f"""CREATE TABLE {s}.oplog_{FOLLOWER} (
  name text COLLATE "C" PRIMARY KEY CHECK (name <> ''),
  {_PLACE})""",
    ]


def _archive_table(s: str) -> str:
    return f"""CREATE TABLE {s}.oplog_{ARCHIVE} (
  archive_id uuid PRIMARY KEY,
  url text NOT NULL,
  epoch bigint NOT NULL CHECK (epoch >= 0),
  generation bigint NOT NULL CHECK (generation >= 0),
  sequence bigint NOT NULL CHECK (sequence >= 0),
  chain bytea NOT NULL,
  head bigint NOT NULL CHECK (head >= 0),
  cursor jsonb CHECK (pg_catalog.jsonb_typeof(cursor) = 'object'),
  origin_server text COLLATE "C" NOT NULL,
  origin_database bigint NOT NULL,
  owner_server text COLLATE "C",
  owner_database bigint,
  position bigint NOT NULL DEFAULT 0,
  {_UPDATED},
  CHECK ((owner_server IS NULL) = (owner_database IS NULL)))"""


def split_old_table(s: str, name: str) -> str:
    """A statement that moves the rows of the old table into these and drops it.

    `name` is the old table's qualified name inside a literal. It changes nothing where the old
    table is gone. Each row goes where its content belongs, whatever its name: consumers could
    once take the names of other rows. A row that nothing could read is left out; what it said is
    then found out as if it had been lost.
    """
    return f"""DO $oplog_do$
DECLARE
  v_right record;
  v_table text;
BEGIN
  IF pg_catalog.to_regclass('{name}') IS NULL THEN RETURN; END IF;
  -- Taken before the rows are read: one that came later would go with the table.
  LOCK TABLE {s}.{OLD_TABLE} IN ACCESS EXCLUSIVE MODE;
{_move_consumers_and_archives(s)}
{_move_adoptions_and_places(s)}
{_share_rights(name)}
  DROP TABLE {s}.{OLD_TABLE};
END $oplog_do$"""


def _move_consumers_and_archives(s: str) -> str:
    return f"""  INSERT INTO {s}.oplog_{CONSUMER} (name, cursor, position, updated_at)
  SELECT o.name, o.cursor, o.position, o.updated_at FROM {s}.{OLD_TABLE} o
  WHERE pg_catalog.jsonb_exists(o.cursor, 'snapshot') AND o.name <> '' ON CONFLICT DO NOTHING;
  INSERT INTO {s}.oplog_{ARCHIVE} (archive_id, url, epoch, generation, sequence, chain, head,
    cursor, origin_server, origin_database, owner_server, owner_database, position, updated_at)
  SELECT pg_catalog.substr(o.name, 9)::uuid, o.cursor ->> 'url', (o.cursor ->> 'epoch')::bigint,
    (o.cursor ->> 'generation')::bigint, (o.cursor ->> 'sequence')::bigint,
    pg_catalog.decode(o.cursor ->> 'chain', 'hex'), (o.cursor ->> 'head')::bigint,
    (o.cursor ->> 'cursor')::jsonb, o.cursor -> 'origin' ->> 0,
    (o.cursor -> 'origin' ->> 1)::bigint, o.cursor -> 'owner' ->> 0,
    (o.cursor -> 'owner' ->> 1)::bigint, o.position, o.updated_at
  FROM {s}.{OLD_TABLE} o WHERE pg_catalog.starts_with(o.name, 'archive/')
    AND pg_catalog.jsonb_exists_all(o.cursor, ARRAY['url', 'epoch', 'generation', 'sequence',
      'chain', 'head', 'cursor', 'origin', 'owner']) ON CONFLICT DO NOTHING;"""


def _move_adoptions_and_places(s: str) -> str:
    place = (
        "(o.cursor ->> 'generation')::bigint, (o.cursor ->> 'sequence')::bigint, "
        "pg_catalog.decode(o.cursor ->> 'chain', 'hex'), o.position, o.updated_at"
    )
    return f"""  INSERT INTO {s}.oplog_{ADOPTION}
    (type_name, after, rows, entries, done, revision, updated_at)
  SELECT pg_catalog.substr(o.name, 7), nullif(o.cursor -> 'after', 'null'::jsonb),
    (o.cursor ->> 'rows')::bigint, (o.cursor ->> 'entries')::bigint,
    (o.cursor ->> 'done')::boolean, coalesce((o.cursor ->> 'revision')::integer, 0), o.updated_at
  FROM {s}.{OLD_TABLE} o WHERE pg_catalog.starts_with(o.name, 'adopt/')
    AND pg_catalog.jsonb_exists_all(o.cursor, ARRAY['after', 'rows', 'entries', 'done'])
  ON CONFLICT DO NOTHING;
  INSERT INTO {s}.oplog_{RESTORE} (generation, sequence, chain, position, updated_at)
  SELECT {place} FROM {s}.{OLD_TABLE} o WHERE o.name = 'restored'
    AND pg_catalog.jsonb_exists(o.cursor, 'chain') ON CONFLICT DO NOTHING;
  INSERT INTO {s}.oplog_{FOLLOWER} (name, generation, sequence, chain, position, updated_at)
  SELECT pg_catalog.substr(o.name, 8), {place} FROM {s}.{OLD_TABLE} o
  WHERE pg_catalog.starts_with(o.name, 'follow/') AND o.name <> 'follow/'
    AND pg_catalog.jsonb_exists(o.cursor, 'chain') ON CONFLICT DO NOTHING;"""


def _share_rights(name: str) -> str:
    """A loop that gives roles the rights on these tables that they had on the old one.

    Without them, roles that consume, adopt or publish would be refused after the upgrade. Nobody
    gets a right to write a restore's or a follower's place.
    """
    copied = ", ".join(f"'{table}'" for table in PROGRESS_TABLES)
    written = ", ".join(f"'{table}'" for table in (CONSUMER, ARCHIVE, ADOPTION))
    return f"""  FOR v_right IN
    SELECT x.privilege_type, coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC') AS grantee
    FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x
    LEFT JOIN pg_catalog.pg_roles r ON r.oid = x.grantee
    WHERE c.oid = '{name}'::regclass AND x.grantee <> c.relowner
      AND x.privilege_type IN ('SELECT', 'INSERT', 'UPDATE')
  LOOP
    FOREACH v_table IN ARRAY ARRAY[{copied}] LOOP
      IF v_right.privilege_type = 'SELECT' OR v_table IN ({written}) THEN
        EXECUTE pg_catalog.concat('GRANT ', v_right.privilege_type,
          ' ON {name.removesuffix(OLD_TABLE)}oplog_', v_table, ' TO ', v_right.grantee);
      END IF;
    END LOOP;
  END LOOP;"""
