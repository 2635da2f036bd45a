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
  type_name text COLLATE "C" NOT NULL,
  work text COLLATE "C" NOT NULL DEFAULT 'adoption' CHECK (work IN ('adoption', 'refill')),
  after jsonb CHECK (pg_catalog.jsonb_typeof(after) = 'object'),
  rows bigint NOT NULL DEFAULT 0 CHECK (rows >= 0),
  entries bigint NOT NULL DEFAULT 0 CHECK (entries >= 0),
  done boolean NOT NULL DEFAULT false,
  revision integer NOT NULL DEFAULT 0 CHECK (revision >= 0),
  {_UPDATED},
  PRIMARY KEY (type_name, work))""",
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
