-- Schema version 1 as it was first defined, in schema oplog. Statements are divided by lines of dashes.
DO $oplog_do$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'oplog')
  THEN CREATE SCHEMA "oplog"; COMMENT ON SCHEMA "oplog" IS 'created for oplog'; END IF;
END $oplog_do$
--------
CREATE TABLE "oplog".oplog_log (
  log_id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
  created_at timestamptz NOT NULL DEFAULT pg_catalog.now())
--------
INSERT INTO "oplog".oplog_log DEFAULT VALUES
--------
CREATE TABLE "oplog".oplog_type (
  type_name text COLLATE "C" NOT NULL,
  revision integer NOT NULL CHECK (revision > 0),
  shape jsonb NOT NULL,
  descriptor bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (type_name, revision))
--------
CREATE TABLE "oplog".oplog_key (
  key_id text COLLATE "C" PRIMARY KEY,
  check_value bytea NOT NULL,
  wrapped bytea,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())
--------
CREATE TABLE "oplog".oplog_ticket (
  aggregate_name text COLLATE "C" PRIMARY KEY,
  version bigint NOT NULL CHECK (version >= 0),
  prev_hash bytea NOT NULL,
  head_hash bytea NOT NULL,
  body_hash bytea NOT NULL) WITH (fillfactor = 50)
--------
CREATE TABLE "oplog".oplog_fence (
  entry_id uuid PRIMARY KEY,
  aggregate_name text COLLATE "C" NOT NULL,
  created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())
--------
CREATE SEQUENCE "oplog".oplog_entry_id_seq AS bigint
--------
CREATE TABLE "oplog".oplog_entry (
  id bigint PRIMARY KEY,
  entry_id uuid NOT NULL,
  transaction_id xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
  transaction_position bigint NOT NULL,
  transaction_size integer NOT NULL,
  aggregate_name text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  format smallint NOT NULL,
  data bytea NOT NULL,
  key_id text COLLATE "C" NOT NULL,
  metadata_hash bytea NOT NULL,
  prev_hash bytea NOT NULL,
  entry_hash bytea NOT NULL,
  created_at timestamptz NOT NULL,
  idempotency_key text COLLATE "C",
  UNIQUE (aggregate_name, version))
--------
ALTER SEQUENCE "oplog".oplog_entry_id_seq OWNED BY "oplog".oplog_entry.id
--------
ALTER TABLE "oplog".oplog_entry ALTER COLUMN data SET STORAGE EXTERNAL
--------
CREATE TABLE "oplog".oplog_metadata (
  transaction_position bigint NOT NULL,
  ordinal integer NOT NULL,
  key text COLLATE "C" NOT NULL,
  value text COLLATE "C" NOT NULL,
  PRIMARY KEY (transaction_position, ordinal))
--------
CREATE TABLE "oplog".oplog_checkpoint (
  name text COLLATE "C" PRIMARY KEY,
  cursor jsonb NOT NULL,
  position bigint NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())
--------
CREATE TABLE "oplog".oplog_pruned (
  number bigint PRIMARY KEY,
  archive_id uuid NOT NULL,
  url text NOT NULL,
  generation bigint NOT NULL,
  sequence bigint NOT NULL,
  chain bytea NOT NULL,
  position bigint NOT NULL,
  entries bigint NOT NULL,
  transaction_id xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
  pruned_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())
--------
CREATE INDEX oplog_entry_transaction ON "oplog".oplog_entry (transaction_id, id)
--------
CREATE INDEX oplog_entry_created ON "oplog".oplog_entry USING brin (created_at)
--------
CREATE UNIQUE INDEX oplog_entry_idempotency ON "oplog".oplog_entry (idempotency_key)
  WHERE idempotency_key IS NOT NULL
--------
CREATE INDEX oplog_metadata_value
  ON "oplog".oplog_metadata (key, pg_catalog.hashtextextended(value, 0))
--------
CREATE FUNCTION "oplog".oplog_refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
BEGIN
  -- Only a member of the owner prunes, in the very transaction that declares what goes. Its id
  -- alone would not do: in a copy of the log on another server it is another transaction's.
  IF (tg_op = 'INSERT' OR tg_op = 'DELETE' AND tg_table_name IN ('oplog_entry', 'oplog_metadata')
      AND EXISTS (SELECT FROM "oplog".oplog_pruned p
        WHERE p.transaction_id = pg_current_xact_id_if_assigned()
          AND p.xmin = p.transaction_id::xid))
    AND pg_has_role(current_user,
      (SELECT c.relowner FROM pg_class c WHERE c.oid = tg_relid), 'MEMBER')
  THEN RETURN NULL; END IF;
  RAISE EXCEPTION USING errcode = 'OP002',
    message = pg_catalog.concat('oplog: ', tg_op, ' on ', pg_catalog.quote_ident(tg_table_schema),
      '.', pg_catalog.quote_ident(tg_table_name), ' is refused: the log is append-only'),
    hint = 'what was written stays; record a correction as a new change';
END $oplog_fn$
--------
CREATE TRIGGER oplog_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON "oplog".oplog_entry FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_entry ENABLE ALWAYS TRIGGER oplog_append_only
--------
CREATE TRIGGER oplog_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON "oplog".oplog_metadata FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_metadata ENABLE ALWAYS TRIGGER oplog_append_only
--------
CREATE TRIGGER oplog_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON "oplog".oplog_fence FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_fence ENABLE ALWAYS TRIGGER oplog_append_only
--------
CREATE TRIGGER oplog_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON "oplog".oplog_type FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_type ENABLE ALWAYS TRIGGER oplog_append_only
--------
CREATE TRIGGER oplog_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON "oplog".oplog_log FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_log ENABLE ALWAYS TRIGGER oplog_append_only
--------
CREATE TRIGGER oplog_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON "oplog".oplog_pruned FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_pruned ENABLE ALWAYS TRIGGER oplog_append_only
--------
CREATE TRIGGER oplog_append_only BEFORE DELETE OR TRUNCATE ON "oplog".oplog_ticket FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_ticket ENABLE ALWAYS TRIGGER oplog_append_only
--------
CREATE TRIGGER oplog_append_only BEFORE DELETE OR TRUNCATE ON "oplog".oplog_key FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_key ENABLE ALWAYS TRIGGER oplog_append_only
--------
CREATE TRIGGER oplog_append_only_declare BEFORE INSERT ON "oplog".oplog_pruned FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_pruned ENABLE ALWAYS TRIGGER oplog_append_only_declare
--------
CREATE TRIGGER oplog_append_only_step BEFORE UPDATE ON "oplog".oplog_ticket FOR EACH ROW
  WHEN ((NEW.aggregate_name IS DISTINCT FROM OLD.aggregate_name
    OR NEW.version IS DISTINCT FROM OLD.version + 1
    OR NEW.prev_hash IS DISTINCT FROM OLD.head_hash) AND NEW.* IS DISTINCT FROM OLD.*) EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_ticket ENABLE ALWAYS TRIGGER oplog_append_only_step
--------
CREATE TRIGGER oplog_append_only_rewrap BEFORE UPDATE ON "oplog".oplog_key FOR EACH ROW
  WHEN (NEW.key_id IS DISTINCT FROM OLD.key_id
    OR NEW.check_value IS DISTINCT FROM OLD.check_value
    OR NEW.created_at IS DISTINCT FROM OLD.created_at) EXECUTE FUNCTION "oplog".oplog_refuse_change()
--------
ALTER TABLE "oplog".oplog_key ENABLE ALWAYS TRIGGER oplog_append_only_rewrap
--------
CREATE FUNCTION "oplog".oplog_append_one(
  p_aggregate text, p_expected bigint, p_entry_id uuid, p_body bytea, p_data bytea,
  p_format smallint, p_key_id text, p_metadata_hash bytea,
  p_metadata_keys text[], p_metadata_values text[], p_idempotency_key text, p_tally bigint,
  p_asynchronous boolean,
  OUT o_version bigint, OUT o_hash bytea)
LANGUAGE plpgsql AS $oplog_fn$
-- oplog_append for the usual transaction, which writes one aggregate: the same steps in the
-- same order, without arrays, at half the cost.
DECLARE
  v_set text;
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_prev bytea;
  v_position bigint;
BEGIN
  IF NOT p_asynchronous
      AND pg_catalog.current_setting('synchronous_commit') = 'off' THEN
    RAISE EXCEPTION USING errcode = 'OP005',
      message = 'oplog: synchronous_commit is off: a crash would lose acknowledged transactions',
      hint = 'SET synchronous_commit = on, or say Oplog(asynchronous_commit=True)';
  END IF;
  IF p_tally IS NOT NULL THEN
  IF pg_catalog.current_setting('oplog.tally', true) IS DISTINCT FROM p_tally::text THEN
    RAISE EXCEPTION USING errcode = 'OP003',
      message = 'oplog: the database saw other changes to tracked tables than the session logs',
      detail = pg_catalog.concat('tally ', pg_catalog.current_setting('oplog.tally', true), ', session ', p_tally),
      hint = 'the transaction is rolled back; if it stays so, run `oplog doctor`';
  END IF;
  v_set := pg_catalog.set_config('oplog.tally', '0', true);
  END IF;
  INSERT INTO "oplog".oplog_ticket AS t
    (aggregate_name, version, prev_hash, head_hash, body_hash)
  VALUES (p_aggregate, 1, '\x0000000000000000000000000000000000000000000000000000000000000000'::bytea, pg_catalog.sha256('oplog/v1/entry'::bytea || '\x00'::bytea || '\x0000000000000000000000000000000000000000000000000000000000000000'::bytea || pg_catalog.int8send(1) || pg_catalog.timestamptz_send(v_now) || p_body), p_body)
  ON CONFLICT (aggregate_name) DO UPDATE SET
    version = t.version + 1, prev_hash = t.head_hash, body_hash = excluded.body_hash,
    head_hash = pg_catalog.sha256('oplog/v1/entry'::bytea || '\x00'::bytea || t.head_hash || pg_catalog.int8send(t.version + 1)
                        || pg_catalog.timestamptz_send(v_now) || p_body)
  RETURNING t.version, t.prev_hash, t.head_hash INTO o_version, v_prev, o_hash;
  IF p_expected <> o_version - 1 THEN
    RAISE EXCEPTION USING errcode = 'OP001',
        message = pg_catalog.concat('oplog: the ticket of aggregate ',
          pg_catalog.quote_literal(p_aggregate), ' was taken at version ', p_expected,
          ', it is now at version ', o_version - 1),
        hint = 'run the whole transaction again';
  END IF;
  IF EXISTS (SELECT FROM "oplog".oplog_fence f WHERE f.entry_id = p_entry_id) THEN
    RAISE EXCEPTION USING errcode = 'OP006',
      message = 'oplog: this transaction was declared aborted before its entry arrived',
      hint = 'run the whole transaction again';
  END IF;
  v_position := pg_catalog.nextval('"oplog".oplog_entry_id_seq');
  INSERT INTO "oplog".oplog_entry (id, entry_id, transaction_position, transaction_size,
    aggregate_name, version, format, data, key_id, metadata_hash, prev_hash, entry_hash,
    created_at, idempotency_key)
  VALUES (v_position, p_entry_id, v_position, 1, p_aggregate, o_version, p_format, p_data,
    p_key_id, p_metadata_hash, v_prev, o_hash, v_now, p_idempotency_key);
  IF p_metadata_keys IS NOT NULL THEN
    INSERT INTO "oplog".oplog_metadata (transaction_position, ordinal, key, value)
    SELECT v_position, m.n, m.key, m.value
    FROM ROWS FROM (pg_catalog.unnest(p_metadata_keys), pg_catalog.unnest(p_metadata_values))
         WITH ORDINALITY AS m(key, value, n);
  END IF;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_append(
  p_aggregates text[], p_expected bigint[], p_entry_ids uuid[], p_bodies bytea[],
  p_data bytea[], p_format smallint, p_key_id text, p_metadata_hash bytea,
  p_metadata_keys text[], p_metadata_values text[], p_idempotency_key text, p_tally bigint,
  p_asynchronous boolean,
  OUT versions bigint[], OUT hashes bytea[])
LANGUAGE plpgsql AS $oplog_fn$
-- Redeems the tickets of all aggregates (given in "C" order, one lock order for everybody),
-- then draws the ids, then writes the entries and the metadata. Raises OP001 when a
-- ticket was redeemed by somebody else since the version in p_expected (NULL is any version).
DECLARE
  v_set text;
  v_count integer := pg_catalog.cardinality(p_aggregates);
  v_now timestamptz := pg_catalog.clock_timestamp();
  v_prev bytea[];
  v_first bigint;
BEGIN
  IF NOT p_asynchronous
      AND pg_catalog.current_setting('synchronous_commit') = 'off' THEN
    RAISE EXCEPTION USING errcode = 'OP005',
      message = 'oplog: synchronous_commit is off: a crash would lose acknowledged transactions',
      hint = 'SET synchronous_commit = on, or say Oplog(asynchronous_commit=True)';
  END IF;
  IF p_tally IS NOT NULL THEN
  IF pg_catalog.current_setting('oplog.tally', true) IS DISTINCT FROM p_tally::text THEN
    RAISE EXCEPTION USING errcode = 'OP003',
      message = 'oplog: the database saw other changes to tracked tables than the session logs',
      detail = pg_catalog.concat('tally ', pg_catalog.current_setting('oplog.tally', true), ', session ', p_tally),
      hint = 'the transaction is rolled back; if it stays so, run `oplog doctor`';
  END IF;
  v_set := pg_catalog.set_config('oplog.tally', '0', true);
  END IF;
  WITH redeemed AS (
  INSERT INTO "oplog".oplog_ticket AS t
    (aggregate_name, version, prev_hash, head_hash, body_hash)
  SELECT i.aggregate, 1, '\x0000000000000000000000000000000000000000000000000000000000000000'::bytea, pg_catalog.sha256('oplog/v1/entry'::bytea || '\x00'::bytea || '\x0000000000000000000000000000000000000000000000000000000000000000'::bytea || pg_catalog.int8send(1) || pg_catalog.timestamptz_send(v_now) || i.body), i.body
  FROM ROWS FROM (pg_catalog.unnest(p_aggregates), pg_catalog.unnest(p_bodies))
       AS i(aggregate, body)
  ORDER BY i.aggregate COLLATE "C"
  ON CONFLICT (aggregate_name) DO UPDATE SET
    version = t.version + 1, prev_hash = t.head_hash, body_hash = excluded.body_hash,
    head_hash = pg_catalog.sha256('oplog/v1/entry'::bytea || '\x00'::bytea || t.head_hash || pg_catalog.int8send(t.version + 1)
                        || pg_catalog.timestamptz_send(v_now) || excluded.body_hash)
  RETURNING t.aggregate_name, t.version, t.prev_hash, t.head_hash)
  SELECT pg_catalog.array_agg(r.version ORDER BY r.aggregate_name),
         pg_catalog.array_agg(r.prev_hash ORDER BY r.aggregate_name),
         pg_catalog.array_agg(r.head_hash ORDER BY r.aggregate_name)
    INTO versions, v_prev, hashes FROM redeemed r;
  FOR n IN 1 .. v_count LOOP
    IF n > 1 AND p_aggregates[n] <= p_aggregates[n - 1] COLLATE "C" THEN
      RAISE EXCEPTION USING errcode = '22023',
        message = 'oplog: aggregates are not sorted or not distinct';
    END IF;
    IF p_expected[n] <> versions[n] - 1 THEN
      RAISE EXCEPTION USING errcode = 'OP001',
        message = pg_catalog.concat('oplog: the ticket of aggregate ',
          pg_catalog.quote_literal(p_aggregates[n]), ' was taken at version ', p_expected[n],
          ', it is now at version ', versions[n] - 1),
        hint = 'run the whole transaction again';
    END IF;
  END LOOP;
  IF EXISTS (SELECT FROM "oplog".oplog_fence f WHERE f.entry_id = ANY (p_entry_ids)) THEN
    RAISE EXCEPTION USING errcode = 'OP006',
      message = 'oplog: this transaction was declared aborted before its entry arrived',
      hint = 'run the whole transaction again';
  END IF;
  v_first := pg_catalog.nextval('"oplog".oplog_entry_id_seq');
  INSERT INTO "oplog".oplog_entry (id, entry_id, transaction_position, transaction_size,
    aggregate_name, version, format, data, key_id, metadata_hash, prev_hash, entry_hash,
    created_at, idempotency_key)
  SELECT CASE i.n WHEN 1 THEN v_first ELSE pg_catalog.nextval('"oplog".oplog_entry_id_seq') END,
    i.entry_id, v_first, v_count, i.aggregate, i.version, p_format, i.data, p_key_id,
    p_metadata_hash, i.prev_hash, i.entry_hash, v_now,
    CASE i.n WHEN 1 THEN p_idempotency_key END
  FROM ROWS FROM (pg_catalog.unnest(p_aggregates), pg_catalog.unnest(p_entry_ids),
                  pg_catalog.unnest(p_data), pg_catalog.unnest(versions),
                  pg_catalog.unnest(v_prev), pg_catalog.unnest(hashes))
       WITH ORDINALITY AS i(aggregate, entry_id, data, version, prev_hash, entry_hash, n);
  IF p_metadata_keys IS NOT NULL THEN
    INSERT INTO "oplog".oplog_metadata (transaction_position, ordinal, key, value)
    SELECT v_first, m.n, m.key, m.value
    FROM ROWS FROM (pg_catalog.unnest(p_metadata_keys), pg_catalog.unnest(p_metadata_values))
         WITH ORDINALITY AS m(key, value, n);
  END IF;
END $oplog_fn$
--------
CREATE TABLE "oplog".oplog_guard (
  schema_name text COLLATE "C" NOT NULL,
  table_name text COLLATE "C" NOT NULL,
  tracked boolean NOT NULL,
  reason text NOT NULL,
  bypass_role text,
  changed_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (schema_name, table_name))
--------
CREATE UNLOGGED TABLE "oplog".oplog_image (
  id bigint GENERATED ALWAYS AS IDENTITY,
  transaction_id xid8 NOT NULL,
  relation oid NOT NULL,
  operation "char" NOT NULL,
  rows bigint NOT NULL,
  kept text[] NOT NULL,
  old_rows text[],
  new_rows text[],
  changed text[])
--------
CREATE INDEX oplog_image_transaction ON "oplog".oplog_image (transaction_id)
--------
CREATE FUNCTION "oplog".oplog_arm() RETURNS boolean
LANGUAGE plpgsql AS $oplog_fn$
-- True for a transaction's first row, which queues the check of COMMIT.
DECLARE
  v_set text;
BEGIN
  IF pg_catalog.current_setting('oplog.armed', true)
      IS NOT DISTINCT FROM pg_catalog.pg_current_xact_id()::text THEN
    RETURN false;
  END IF;
  -- Assigned, not performed: a plain expression needs no executor.
  v_set := pg_catalog.set_config('oplog.armed', pg_catalog.pg_current_xact_id()::text, true);
  v_set := pg_catalog.set_config('oplog.tally', '0', true);
  RETURN true;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_set_text(p_values text[]) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Settings that decide what values look like as text; gives back what they were.
DECLARE
  v_before text[] := ARRAY[current_setting('datestyle'), current_setting('intervalstyle'), current_setting('timezone'), current_setting('extra_float_digits'), current_setting('bytea_output'), current_setting('xmloption'), current_setting('array_nulls'), current_setting('lc_monetary')];
BEGIN
  IF v_before <> p_values THEN PERFORM set_config('datestyle', p_values[1], true), set_config('intervalstyle', p_values[2], true), set_config('timezone', p_values[3], true), set_config('extra_float_digits', p_values[4], true), set_config('bytea_output', p_values[5], true), set_config('xmloption', p_values[6], true), set_config('array_nulls', p_values[7], true), set_config('lc_monetary', p_values[8], true); END IF;
  RETURN v_before;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_kept_columns(p_table oid) RETURNS text[]
LANGUAGE sql STABLE AS $oplog_fn$
-- The primary key, and what any aggregate's name is made of: with these the application finds
-- a touched row, and the aggregate that it was in.
SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum)
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND (
  EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
          AND a.attnum = ANY (i.indkey::smallint[]))
  OR EXISTS (SELECT FROM "oplog".oplog_type t WHERE t.shape->>'schema' = n.nspname::text
          AND t.shape->>'table' = c.relname::text
          AND pg_catalog.strpos(t.shape->>'aggregate', '{' || a.attname::text || '}') > 0)
  -- Nothing was ever logged for it: any column may be in the name.
  OR NOT EXISTS (SELECT FROM "oplog".oplog_type t WHERE t.shape->>'schema' = n.nspname::text
          AND t.shape->>'table' = c.relname::text))
$oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_image_update(p_table oid, p_kept text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- The statement that keeps the images of an UPDATE. Both transition tables hold the rows in
-- the order they were updated. Record image operators compare what is stored, for any type.
SELECT concat('INSERT INTO "oplog".oplog_image (transaction_id, relation, operation, rows, kept, old_rows, new_rows, changed) '
  'SELECT pg_current_xact_id(), $1, $2, count(*), $3, CASE WHEN bool_or(record_image_ne(ROW(',
  string_agg(concat('o.c', a.attnum), ', ' ORDER BY a.attnum) FILTER (WHERE k.kept),
  '), ROW(',
  string_agg(concat('n.c', a.attnum), ', ' ORDER BY a.attnum) FILTER (WHERE k.kept),
  '))) THEN array_agg(ARRAY[',
  string_agg(concat('o.c', a.attnum, '::text'), ', ' ORDER BY a.attnum) FILTER (WHERE k.kept),
  ']) END, array_agg(ARRAY[',
  string_agg(concat('n.c', a.attnum, '::text'), ', ' ORDER BY a.attnum) FILTER (WHERE k.kept),
  ']), array_remove(ARRAY[',
  string_agg(concat('CASE WHEN bool_or(record_image_ne(ROW(o.c', a.attnum, '), ROW(n.c',
    a.attnum, '))) THEN ', quote_literal(a.attname), ' END'), ', ' ORDER BY a.attnum),
  ']::text[], NULL) FROM (SELECT row_number() OVER () AS r, ',
  string_agg(concat(quote_ident(a.attname), ' AS c', a.attnum), ', '),
  ' FROM oplog_old) o FULL JOIN (SELECT row_number() OVER () AS r, ',
  string_agg(concat(quote_ident(a.attname), ' AS c', a.attnum), ', '),
  ' FROM oplog_new) n USING (r) GROUP BY (r - 1) / 10000')
FROM pg_attribute a, LATERAL (SELECT a.attname::text = ANY (p_kept) AS kept) k
WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
$oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_guard() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Counts the rows of an announced statement. Of any other it leaves the keys of the rows it
-- touched, and which columns it changed in any of them. Values are read from the table itself
-- when the application collects, so the order of nested statements need not be known.
DECLARE
  v_set text;
  v_rows bigint;
  v_kept text[];
  v_list text;
  v_array text;
  v_sql text;
  v_before text[];
BEGIN
  IF tg_op = 'DELETE' THEN SELECT count(*) INTO v_rows FROM oplog_old;
  ELSE SELECT count(*) INTO v_rows FROM oplog_new; END IF;
  IF v_rows = 0 THEN RETURN NULL; END IF;
  v_set := set_config('oplog.tally', (coalesce(nullif(current_setting('oplog.tally', true), ''), '0')::bigint + v_rows * (CASE tg_op WHEN 'INSERT' THEN (tg_relid::bigint & 1048575) * 4 + 1 WHEN 'UPDATE' THEN 2 * (tg_relid::bigint & 1048575) * 4 + 3 ELSE (tg_relid::bigint & 1048575) * 4 + 2 END))::text, true);
  IF pg_trigger_depth() = 1 AND strpos(current_query(), concat('/*oplog:', tg_relid, '*/')) > 0 THEN RETURN NULL; END IF;
  v_kept := "oplog".oplog_kept_columns(tg_relid);
  IF tg_op <> 'UPDATE' THEN
    SELECT string_agg(concat(quote_ident(c), '::text AS c', n), ', '),
           string_agg(concat('r.c', n), ', ')
      INTO v_list, v_array FROM unnest(v_kept) WITH ORDINALITY AS k(c, n);
    v_sql := concat('INSERT INTO "oplog".oplog_image (transaction_id, relation, operation, rows, kept, ',
      CASE tg_op WHEN 'INSERT' THEN 'new_rows' ELSE 'old_rows' END,
      ') SELECT pg_current_xact_id(), $1, $2, count(*), $3, array_agg(ARRAY[', v_array,
      ']) FROM (SELECT (row_number() OVER () - 1) / 10000 AS part, ', v_list, ' FROM ',
      CASE tg_op WHEN 'INSERT' THEN 'oplog_new' ELSE 'oplog_old' END,
      ') r GROUP BY r.part');
  ELSE
    v_sql := "oplog".oplog_image_update(tg_relid, v_kept);
  END IF;
  v_before := "oplog".oplog_set_text(ARRAY['ISO, MDY', 'postgres', 'UTC', '1', 'hex', 'content', 'on', 'C']);
  EXECUTE v_sql USING tg_relid, left(tg_op, 1)::"char", v_kept;
  PERFORM "oplog".oplog_set_text(v_before);
  IF current_setting('oplog.told', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
    PERFORM set_config('oplog.told', pg_current_xact_id()::text, true);
    RAISE INFO USING errcode = 'OP004', schema = tg_argv[0],
      message = concat('oplog: ', tg_relid::regclass, ' is changed by a statement that no '
        'attached session announced; COMMIT is refused unless the change is logged');
  END IF;
  RETURN NULL;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_guard_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- The same for one row of a partitioned table, whose statement triggers do not fire for
-- statements aimed at a partition, and whose row triggers are cloned to every partition there
-- is and will be. A row that moves to another one comes as a delete and an insert.
DECLARE
  v_set text;
  v_root oid := pg_partition_root(tg_relid);
  v_kept text[];
  v_before text[];
  v_list text;
  v_old text[];
  v_new text[];
  v_changed text[];
BEGIN
  v_set := set_config('oplog.tally', (coalesce(nullif(current_setting('oplog.tally', true), ''), '0')::bigint + (CASE tg_op WHEN 'INSERT' THEN (v_root::bigint & 1048575) * 4 + 1 WHEN 'UPDATE' THEN 2 * (v_root::bigint & 1048575) * 4 + 3 ELSE (v_root::bigint & 1048575) * 4 + 2 END))::text, true);
  IF pg_trigger_depth() = 1 AND strpos(current_query(), concat('/*oplog:', v_root, '*/')) > 0 THEN RETURN NULL; END IF;
  v_kept := "oplog".oplog_kept_columns(v_root);
  v_before := "oplog".oplog_set_text(ARRAY['ISO, MDY', 'postgres', 'UTC', '1', 'hex', 'content', 'on', 'C']);
  SELECT concat('SELECT ARRAY[', string_agg(concat('($1).', quote_ident(c), '::text'), ', '), ']')
    INTO v_list FROM unnest(v_kept) AS c;
  IF tg_op <> 'INSERT' THEN EXECUTE v_list INTO v_old USING OLD; END IF;
  IF tg_op <> 'DELETE' THEN EXECUTE v_list INTO v_new USING NEW; END IF;
  IF tg_op = 'UPDATE' THEN
    SELECT concat('SELECT array_remove(ARRAY[', string_agg(concat(
      'CASE WHEN record_image_ne(ROW(($1).', quote_ident(a.attname), '), ROW(($2).',
      quote_ident(a.attname), ')) THEN ', quote_literal(a.attname), ' END'), ', '),
      ']::text[], NULL)') INTO v_list
    FROM pg_attribute a
    WHERE a.attrelid = tg_relid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
    EXECUTE v_list INTO v_changed USING OLD, NEW;
  END IF;
  INSERT INTO "oplog".oplog_image
    (transaction_id, relation, operation, rows, kept, old_rows, new_rows, changed)
  VALUES (pg_current_xact_id(), v_root, left(tg_op, 1)::"char", 1, v_kept,
    CASE WHEN v_old IS DISTINCT FROM v_new AND v_old IS NOT NULL THEN ARRAY[v_old] END,
    CASE WHEN v_new IS NOT NULL THEN ARRAY[v_new] END, v_changed);
  PERFORM "oplog".oplog_set_text(v_before);
  IF current_setting('oplog.told', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
    PERFORM set_config('oplog.told', pg_current_xact_id()::text, true);
    RAISE INFO USING errcode = 'OP004', schema = tg_argv[0],
      message = concat('oplog: ', v_root::regclass, ' is changed by a statement that no '
        'attached session announced; COMMIT is refused unless the change is logged');
  END IF;
  RETURN NULL;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_mark(p_keys text[], p_values text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- An entry by the database itself: it has no key to seal with, so it has no payload.
DECLARE
  v_id uuid := gen_random_uuid();
  v_metadata bytea;
BEGIN
  SELECT sha256('oplog/v1/metadata'::bytea || '\x00'::bytea || int4send(count(*)::integer)
      || string_agg(int4send(octet_length(convert_to(m.key, 'UTF8'))) || convert_to(m.key, 'UTF8') || int4send(octet_length(convert_to(m.value, 'UTF8'))) || convert_to(m.value, 'UTF8'), ''::bytea ORDER BY m.n))
    INTO v_metadata
    FROM ROWS FROM (unnest(p_keys), unnest(p_values)) WITH ORDINALITY AS m(key, value, n);
  PERFORM "oplog".oplog_append_one('oplog/bypass', NULL, v_id,
    sha256('oplog/v1/body'::bytea || '\x00'::bytea || int4send(3) || uuid_send(v_id)
      || int4send(octet_length(convert_to('oplog/bypass', 'UTF8'))) || convert_to('oplog/bypass', 'UTF8') || int4send(0) || v_metadata || int4send(1)
      || '\x00'::bytea || int4send(0)),
    ''::bytea, 3::smallint, '', v_metadata, p_keys, p_values, NULL, NULL, true);
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_try_bypass(p_changes text, p_tables text[]) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- True if this transaction may pass unlogged; it leaves a mark that says so.
DECLARE
  v_reason text := left(current_setting('oplog.bypass', true), 250);
BEGIN
  IF coalesce(v_reason, '') = '' THEN RETURN false; END IF;
  IF EXISTS (SELECT FROM "oplog".oplog_guard g
      WHERE g.bypass_role IS NOT NULL
        AND concat(quote_ident(g.schema_name), '.', quote_ident(g.table_name)) = ANY (p_tables)
        AND NOT pg_has_role(session_user, g.bypass_role, 'MEMBER')) THEN
    RETURN false;
  END IF;
  PERFORM "oplog".oplog_mark(ARRAY['oplog.bypass', 'oplog.role', 'oplog.changes'],
    ARRAY[v_reason, session_user::text, left(p_changes, 250)]);
  RETURN true;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_guard_check() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $oplog_fn$
-- Runs at COMMIT. An open tally is a change that no entry tells.
DECLARE
  v_set text;
  v_changes text;
  v_tables text[];
BEGIN
  -- Whatever a deferred trigger writes after this arms the check again.
  v_set := set_config('oplog.armed', '', true);
  IF coalesce(current_setting('oplog.tally', true), '') IN ('', '0') THEN RETURN NULL; END IF;
  SELECT string_agg(concat(i.name, ' (', i.rows, CASE i.rows WHEN 1 THEN ' row)' ELSE ' rows)' END),
      ', ' ORDER BY i.name), array_agg(i.name)
    INTO v_changes, v_tables
    FROM (SELECT concat(quote_ident(n.nspname), '.', quote_ident(c.relname)) AS name,
            sum(m.rows) AS rows
          FROM "oplog".oplog_image m JOIN pg_class c ON c.oid = m.relation
          JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE m.transaction_id = pg_current_xact_id() GROUP BY 1) i;
  IF v_changes IS NOT NULL AND "oplog".oplog_try_bypass(v_changes, v_tables) THEN
    DELETE FROM "oplog".oplog_image WHERE transaction_id = pg_current_xact_id();
    PERFORM set_config('oplog.tally', '', true);
    RETURN NULL;
  END IF;
  RAISE EXCEPTION USING errcode = 'OP003',
    message = concat('oplog: this transaction changes tracked rows and does not log them: ',
      coalesce(v_changes, 'statements were announced and no entry came')),
    hint = CASE WHEN current_query() ~* 'set\s+constraints'
      THEN 'SET CONSTRAINTS ALL IMMEDIATE runs this check too early; name your constraints instead'
      ELSE 'write through a session that is attached to the log, or set oplog.bypass to the '
        'reason why this transaction may pass unlogged' END;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_settle(p_tally bigint) RETURNS void
LANGUAGE plpgsql AS $oplog_fn$
-- For a transaction whose changes come to nothing, so that there is nothing to append.
DECLARE
  v_set text;
BEGIN
  IF pg_catalog.current_setting('oplog.tally', true) IS DISTINCT FROM p_tally::text THEN
    RAISE EXCEPTION USING errcode = 'OP003',
      message = 'oplog: the database saw other changes to tracked tables than the session logs',
      detail = pg_catalog.concat('tally ', pg_catalog.current_setting('oplog.tally', true), ', session ', p_tally),
      hint = 'the transaction is rolled back; if it stays so, run `oplog doctor`';
  END IF;
  v_set := pg_catalog.set_config('oplog.tally', '0', true);
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_guard_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $oplog_fn$
BEGIN
  IF "oplog".oplog_try_bypass(concat(concat(quote_ident(tg_table_schema), '.', quote_ident(tg_table_name)), ' (TRUNCATE)'), ARRAY[concat(quote_ident(tg_table_schema), '.', quote_ident(tg_table_name))]) THEN RETURN NULL; END IF;
  RAISE EXCEPTION USING errcode = 'OP003',
    message = concat('oplog: TRUNCATE of tracked table ', concat(quote_ident(tg_table_schema), '.', quote_ident(tg_table_name)),
      ' is refused: it would not be logged'),
    hint = 'use DELETE, which is logged row by row, or set oplog.bypass to the reason why not';
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_check_trackable(p_table regclass) RETURNS "char"
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
DECLARE
  v_class pg_class;
  v_why text;
BEGIN
  SELECT * INTO v_class FROM pg_class c WHERE c.oid = p_table;
  v_why := CASE
    WHEN v_class.relkind NOT IN ('r', 'p') THEN 'it is not a table'
    WHEN v_class.relpersistence = 't' THEN 'it is temporary'
    WHEN v_class.relispartition THEN concat('it is a partition; track ', pg_partition_root(p_table))
    WHEN v_class.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits h
      WHERE p_table IN (h.inhrelid, h.inhparent))
      THEN 'it takes part in table inheritance, where a key may be there twice'
    WHEN NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = p_table AND i.indisprimary)
      THEN 'it has no primary key'
  END;
  IF v_why IS NOT NULL THEN
    RAISE EXCEPTION USING errcode = '42809',
      message = concat('oplog: ', p_table, ' cannot be tracked: ', v_why),
      hint = 'list it as untracked, with the reason';
  END IF;
  RETURN v_class.relkind;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_declare_guard(
  p_table regclass, p_tracked boolean, p_reason text, p_bypass_role text)
RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
INSERT INTO "oplog".oplog_guard (schema_name, table_name, tracked, reason, bypass_role)
SELECT n.nspname, c.relname, p_tracked, p_reason, p_bypass_role
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_table
ON CONFLICT (schema_name, table_name) DO UPDATE SET tracked = excluded.tracked,
  reason = excluded.reason, bypass_role = excluded.bypass_role, changed_at = clock_timestamp()
$oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_drop_guard(p_table regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
DECLARE
  v_trigger record;
BEGIN
  FOR v_trigger IN
    SELECT g.tgname, g.tgrelid::regclass AS relation
    FROM (SELECT p_table AS relid UNION SELECT relid FROM pg_partition_tree(p_table)) t
    JOIN pg_trigger g ON g.tgrelid = t.relid
    JOIN pg_proc f ON f.oid = g.tgfoid
    -- By name as well: somebody may have pointed one at another function.
    WHERE g.tgparentid = 0 AND (starts_with(g.tgname, 'oplog_guard_')
      OR starts_with(f.proname, 'oplog_guard') AND f.pronamespace = (
        SELECT o.pronamespace FROM pg_proc o
        WHERE o.oid = '"oplog".oplog_guard_check()'::regprocedure))
  LOOP
    EXECUTE concat('DROP TRIGGER ', quote_ident(v_trigger.tgname), ' ON ', v_trigger.relation);
  END LOOP;
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_track_table(p_table regclass, p_bypass_role text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
DECLARE
  v_kind "char" := "oplog".oplog_check_trackable(p_table);
  v_event text;
  v_part regclass;
  v_trigger text;
BEGIN
  PERFORM "oplog".oplog_drop_guard(p_table);
  EXECUTE concat('CREATE CONSTRAINT TRIGGER oplog_guard_armed AFTER INSERT OR UPDATE OR DELETE ON ',
    p_table, ' DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN ("oplog".oplog_arm()) '
    'EXECUTE FUNCTION "oplog".oplog_guard_check()');
  IF v_kind = 'p' THEN
    EXECUTE concat('CREATE TRIGGER oplog_guard_row AFTER INSERT OR UPDATE OR DELETE ON ', p_table,
      ' FOR EACH ROW EXECUTE FUNCTION "oplog".oplog_guard_row(''oplog'')');
  ELSE
    FOREACH v_event IN ARRAY ARRAY['insert', 'update', 'delete'] LOOP
      EXECUTE concat('CREATE TRIGGER oplog_guard_', v_event, ' AFTER ', v_event, ' ON ', p_table,
        ' REFERENCING', CASE WHEN v_event <> 'insert' THEN ' OLD TABLE AS oplog_old' END,
        CASE WHEN v_event <> 'delete' THEN ' NEW TABLE AS oplog_new' END,
        ' FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_guard(''oplog'')');
    END LOOP;
  END IF;
  FOR v_part IN SELECT p_table UNION SELECT relid FROM pg_partition_tree(p_table) LOOP
    EXECUTE concat('CREATE TRIGGER oplog_guard_truncate BEFORE TRUNCATE ON ', v_part,
      ' FOR EACH STATEMENT EXECUTE FUNCTION "oplog".oplog_guard_truncate()');
  END LOOP;
  -- ALWAYS: session_replication_role = replica would switch ordinary triggers off.
  FOR v_part, v_trigger IN
    SELECT g.tgrelid::regclass, g.tgname FROM pg_trigger g
    JOIN (SELECT p_table AS relid UNION SELECT relid FROM pg_partition_tree(p_table)) t
      ON t.relid = g.tgrelid
    WHERE starts_with(g.tgname, 'oplog_guard_') AND g.tgenabled <> 'A' ORDER BY g.tgparentid
  LOOP
    EXECUTE concat('ALTER TABLE ', v_part, ' ENABLE ALWAYS TRIGGER ', quote_ident(v_trigger));
  END LOOP;
  PERFORM "oplog".oplog_declare_guard(p_table, true, '', p_bypass_role);
END $oplog_fn$
--------
CREATE FUNCTION "oplog".oplog_untrack_table(p_table regclass, p_reason text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $oplog_fn$
BEGIN
  PERFORM "oplog".oplog_drop_guard(p_table);
  PERFORM "oplog".oplog_declare_guard(p_table, false, p_reason, NULL);
END $oplog_fn$
--------
COMMENT ON TABLE "oplog".oplog_entry IS 'oplog schema version 1'
